"""How the page looks, in the light and in the dark, and what it does: tips where the pointer is,
and with the arrow keys.

Scope: CSS and JavaScript as they stand in the page. The colours are those of Okabe and Ito (Color
Universal Design, 2008), which people who see few colours tell apart.
"""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1c1c1c; --soft: #5f5f5f; --line: #dcdcd8;
  --panel: #f6f6f3; --edge: #fff; --good: #00694d; --bad: #a93b00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #56b4e9; --c4: #f0c419; --c5: #cc79a7;
  --c6: #7a4fa3; --c7: #6b6b6b }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --ink: #e8e8e6; --soft: #a5a7aa;
  --line: #3a3d42; --panel: #1f2226; --edge: #16181b; --good: #4fd1a5; --bad: #ff9a5c;
  --c0: #3f9edb; --c1: #ea7a2c; --c2: #1fbf92; --c3: #8ccdf2; --c4: #f3d75b; --c5: #dc9cc0;
  --c6: #a988d0; --c7: #97999c } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5em; max-width: 1180px;
  background: var(--back); color: var(--ink) }
h1 { font-size: 1.5em; line-height: 1.25; margin: 0 0 .5em; overflow-wrap: anywhere }
h2 { font-size: 1.15em; margin: 2em 0 .4em }
p, ul.notes { color: var(--soft); margin: .4em 0 }
.verdict { border-left: 6px solid; background: var(--panel); padding: .7em 1em; font-size: 1.1em;
  color: var(--ink) }
.fits { border-color: var(--good) } .fits b { color: var(--good) }
.not { border-color: var(--bad) } .not b { color: var(--bad) }
.scroll { overflow-x: auto; margin: .6em 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15em 1.2em .15em 0; text-align: left; vertical-align: top; font-weight: normal }
.right { text-align: right }
.named td:first-child, th { color: var(--soft); white-space: nowrap }
.wide td.right { white-space: nowrap }
.wide td, .wide th { padding-right: .95em }
.wide th { border-bottom: 1px solid var(--line) }
.this td { font-weight: 600; background: var(--panel) }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2em 1.4em; padding: 0;
  margin: .4em 0; color: var(--soft) }
.legend svg { width: .8em; height: .8em; margin-right: .45em }
figure { margin: 0; overflow-x: auto }
figure > svg { display: block; width: 100%; min-width: 640px; background: var(--panel);
  border: 1px solid var(--line) }
figure > svg:focus-visible { outline: 3px solid var(--c0); outline-offset: 1px }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
svg text.strong { fill: var(--ink); font-weight: 600 }
.end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: var(--line); stroke-width: 1 } .axis { stroke: var(--soft); stroke-width: 1 }
.limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 4 }
.turn { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 3 }
rect { stroke: var(--edge); stroke-width: .35; vector-effect: non-scaling-stroke }
rect.area { stroke: none; shape-rendering: crispEdges }
.c0 { fill: var(--c0) } .c1 { fill: var(--c1) } .c2 { fill: var(--c2) } .c3 { fill: var(--c3) }
.c4 { fill: var(--c4) } .c5 { fill: var(--c5) } .c6 { fill: var(--c6) } .c7 { fill: var(--c7) }
.wait { fill: url(#hatch) }
rect[data-tip]:hover, rect.chosen { stroke: var(--ink); stroke-width: 2 }
#tip { position: fixed; display: none; background: var(--ink); color: var(--back); padding: 4px 9px;
  border-radius: 4px; pointer-events: none; max-width: 34em; z-index: 1 }
.hidden { position: absolute; width: 0; height: 0 }
"""

HATCH = """<svg class="hidden" aria-hidden="true"><defs><pattern id="hatch" width="5" height="5"
patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5"
fill="var(--panel)" stroke="none"/><rect width="2.5" height="5" fill="var(--soft)" stroke="none"/>
</pattern></defs></svg>"""

SCRIPT = """
const tip = document.getElementById("tip");
let chosen = null;
function tell(shape, x, y) {
  const text = shape && shape.dataset ? shape.dataset.tip : undefined;
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
  const tall = tip.offsetHeight, is_low = y + 16 + tall > innerHeight;
  tip.style.top = (is_low ? y - tall - 8 : y + 16) + "px";
}
function choose(shape) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = shape;
  if (!shape) return tell(null);
  shape.classList.add("chosen");
  const box = shape.getBoundingClientRect();
  tell(shape, box.left + Math.min(box.width / 2, 200), box.bottom);
}
document.addEventListener("pointermove", event => {
  if (chosen) choose(null);
  tell(event.target, event.clientX, event.clientY);
});
for (const chart of document.querySelectorAll("figure > svg")) {
  const shapes = [...chart.querySelectorAll("[data-tip]")];
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  chart.addEventListener("keydown", event => {
    if (event.key === "Escape") return choose(null);
    if (!(event.key in steps) || !shapes.length) return;
    event.preventDefault();
    const at = shapes.indexOf(chosen) + steps[event.key];
    choose(shapes[Math.max(0, Math.min(shapes.length - 1, at))]);
  });
  chart.addEventListener("blur", () => choose(null));
}
"""
