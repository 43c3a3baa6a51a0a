package web

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// luminance is the relative luminance of WCAG 2.2 of a colour as #rrggbb.
func luminance(t *testing.T, colour string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(colour, "#"), 16, 24)
	if err != nil || len(colour) != 7 {
		t.Fatalf("colour %q: %v", colour, err)
	}
	channel := func(shift int) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
}

func contrast(t *testing.T, one, other string) float64 {
	t.Helper()
	a, b := luminance(t, one), luminance(t, other)
	return (max(a, b) + 0.05) / (min(a, b) + 0.05)
}

// palettes are the custom properties of the :root rules: light, dark, print.
func palettes(t *testing.T) map[string]map[string]string {
	t.Helper()
	roots := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(pageCSS, -1)
	if len(roots) != 3 {
		t.Fatalf("%d :root rules, want light, dark and print", len(roots))
	}
	found := map[string]map[string]string{}
	for i, name := range []string{"light", "dark", "print"} {
		found[name] = map[string]string{}
		if name == "print" {
			maps.Copy(found[name], found["light"])
		}
		for _, property := range regexp.MustCompile(`--([a-z-]+): ([^;]+);`).FindAllStringSubmatch(roots[i][1], -1) {
			found[name][property[1]] = property[2]
		}
	}
	if !slices.Equal(slices.Sorted(maps.Keys(found["light"])), slices.Sorted(maps.Keys(found["dark"]))) {
		t.Errorf("light and dark don't set the same properties")
	}
	return found
}

func TestContrastIsEnoughInEveryMode(t *testing.T) {
	if got := contrast(t, "#000000", "#ffffff"); got != 21 {
		t.Fatalf("black on white: %v, want 21", got)
	}
	type pair struct {
		front, back string
		want        float64
	}
	var pairs []pair
	for _, text := range []string{"text", "quiet", "link", "good", "warn", "bad", "none"} {
		pairs = append(pairs, pair{text, "surface", 4.5}, pair{text, "ground", 4.5})
	}
	for _, level := range []string{"good", "warn", "bad", "none"} {
		pairs = append(pairs, pair{level, level + "-ground", 4.5})
	}
	pairs = append(pairs, pair{"bar", "surface", 3}) // graphics: WCAG 1.4.11
	for mode, palette := range palettes(t) {
		for _, p := range pairs {
			front, back := palette[p.front], palette[p.back]
			if front == "" || back == "" {
				t.Fatalf("%s: no colour %s or %s", mode, p.front, p.back)
			}
			if got := contrast(t, front, back); got < p.want {
				t.Errorf("%s: %s %s on %s %s has a contrast of %.2f, want %.1f", mode, p.front, front, p.back, back, got, p.want)
			}
		}
	}
}

func TestColoursAreNamedInOnePlace(t *testing.T) {
	rules := regexp.MustCompile(`(?s):root \{.*?\}`).ReplaceAllString(pageCSS, "")
	if found := regexp.MustCompile(`#[0-9a-f]{3,8}\b|rgba?\(|hsla?\(`).FindAllString(rules, -1); len(found) > 0 {
		t.Errorf("colours beside the palette, which the test of contrast does not see: %v", found)
	}
	used := regexp.MustCompile(`var\(--([a-z-]+)\)`).FindAllStringSubmatch(rules, -1)
	for _, u := range used {
		if palettes(t)["light"][u[1]] == "" {
			t.Errorf("the style uses --%s, which is not set", u[1])
		}
	}
	if len(used) < 20 {
		t.Error(fmt.Sprint("found only ", len(used), " uses of the palette"))
	}
}
