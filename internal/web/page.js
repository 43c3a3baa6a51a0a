(() => {
  const every = 30000, patience = 10;
  const old = document.getElementById("old");
  const live = document.getElementById("live");
  let since = new Date(), selecting = 0;
  const sentence = (page) => page.querySelector(".overall").textContent + ": " + page.querySelector(".age").textContent;

  // What has the keyboard's focus, as a selector for the same thing on the next page.
  const focused = () => {
    const e = document.activeElement;
    if (e.hasAttribute("aria-labelledby")) return "[tabindex][aria-labelledby=" + e.getAttribute("aria-labelledby") + "]";
    return e.tagName === "SUMMARY" ? "#" + e.parentElement.id + " > summary" : "";
  };

  function show(next) {
    if (sentence(next) !== sentence(document)) live.textContent = sentence(next);
    const focus = focused();
    const left = [...document.querySelectorAll(".scroll")].map((e) => [e.getAttribute("aria-labelledby"), e.scrollLeft]);
    for (const details of document.querySelectorAll("details[open]")) next.getElementById(details.id)?.setAttribute("open", "");
    for (const id of ["top", "main"]) document.getElementById(id).replaceChildren(...next.getElementById(id).childNodes);
    for (const [name, x] of left) {
      const e = document.querySelector(".scroll[aria-labelledby=" + name + "]");
      if (e) e.scrollLeft = x;
    }
    if (focus) document.querySelector(focus)?.focus({ preventScroll: true });
    document.title = next.title;
    document.querySelector("link[rel=icon]").href = next.querySelector("link[rel=icon]").href;
  }

  async function look() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.origin + location.pathname, { cache: "no-store", signal: AbortSignal.timeout(15000) });
      if (!answer.ok) throw new Error("the agent answers " + answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!next.getElementById("top") || !next.getElementById("main")) throw new Error("this is not the agent's page");
      // Somebody who copies a message should not lose it, but for a while only.
      if (!getSelection().isCollapsed && ++selecting < patience) return;
      selecting = 0;
      since = new Date();
      old.hidden = true;
      show(next);
    } catch (error) {
      old.textContent = "What you see is old: no news from the agent since " + since.toISOString().slice(11, 19) + " UTC (" + error.message + ").";
      old.hidden = false;
    }
  }
  setInterval(look, every);
  document.addEventListener("visibilitychange", look);
})();
