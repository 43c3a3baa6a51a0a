(() => {
  const old = document.getElementById("old");
  const live = document.getElementById("live");
  let since = new Date();
  const sentence = (page) => page.querySelector(".overall").textContent + ": " + page.querySelector(".age").textContent;
  const busy = (main) => main.contains(document.activeElement) && document.activeElement !== main || !getSelection().isCollapsed;

  async function look() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.origin + location.pathname, { cache: "no-store", signal: AbortSignal.timeout(15000) });
      if (!answer.ok) throw new Error("the agent answers " + answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      const from = next.getElementById("main"), to = document.getElementById("main");
      if (!from) throw new Error("this is not the agent's page");
      old.hidden = true;
      since = new Date();
      if (busy(to)) return;
      if (sentence(from) !== sentence(to)) live.textContent = sentence(from);
      for (const details of to.querySelectorAll("details[open]")) from.querySelector("#" + details.id)?.setAttribute("open", "");
      to.replaceChildren(...from.childNodes);
      document.title = next.title;
      document.querySelector("link[rel=icon]").href = next.querySelector("link[rel=icon]").href;
    } catch (error) {
      old.textContent = "What you see is old: no news from the agent since " + since.toISOString().slice(11, 19) + " UTC (" + error.message + ").";
      old.hidden = false;
    }
  }
  setInterval(look, 30000);
  document.addEventListener("visibilitychange", look);
})();
