"""The page's style sheet, and what a browser may do with the page: nothing but show it."""

import base64
from hashlib import sha256
from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #17212b; --soft: #566472;
  --edge: #dbe1e7; --one: #0a66c2; --two: #b4480a; --well: #0d7a3f; --warn: #8a5300;
  --bad: #b3261e;
}
@media(prefers-color-scheme:dark) {
  :root {
    --page: #0e141a; --card: #172029; --ink: #e7ecf1; --soft: #9fadba; --edge: #2a3641;
    --one: #62b0ff; --two: #ff9f66; --well: #52cd88; --warn: #ffc15e; --bad: #ff8f85;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui,sans-serif;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 16px }
header { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline; padding-top: 16px }
h1 { font-size: 20px; margin: 0 }
h2 { font-size: 15px; margin: 0 }
header p, footer, .summary, .note, small { color: var(--soft) }
header p, .summary, .note { margin: 0 }
header p { font-size: 13px }
main {
  display: grid; gap: 12px; grid-template-columns: repeat(2,minmax(0,1fr)); padding-top: 12px;
}
section, figure {
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 14px 16px; margin: 0; min-width: 0;
}
.wide { grid-column: 1/-1 }
.state { border-left: 6px solid var(--level); display: flex; gap: 12px; align-items: flex-start }
.state.well { --level: var(--well) }
.state.warn { --level: var(--warn) }
.state.bad { --level: var(--bad) }
.state svg {
  flex: none; width: 26px; height: 26px; margin-top: 1px; fill: none; stroke: var(--level);
  stroke-width: 2.4; stroke-linecap: round; stroke-linejoin: round;
}
.state strong { font-size: 18px; line-height: 1.5; overflow-wrap: anywhere }
.state ul { margin: 4px 0 0; padding-left: 18px; overflow-wrap: anywhere }
.state p { margin: 2px 0 0; color: var(--soft) }
dl {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(150px,1fr)); gap: 12px; margin: 0;
}
dl div {
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 10px 16px;
}
dt { color: var(--soft); font-size: 13px }
dd {
  margin: 0; font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap;
}
dd small { font-size: 13px; font-weight: 400; display: block; white-space: normal }
.plot { display: grid; grid-template-columns: auto minmax(0,1fr); gap: 6px 8px }
.plot figcaption, .plot .summary { grid-column: 1/-1 }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline }
figcaption h2 { margin-right: auto }
.key { font-size: 13px; white-space: nowrap }
.swatch { width: 10px; height: 10px; margin-right: 5px }
.heights, .times {
  display: flex; justify-content: space-between; color: var(--soft); font-size: 12px;
  font-variant-numeric: tabular-nums;
}
.heights { flex-direction: column; text-align: right; margin: -8px 0; white-space: nowrap }
.times { grid-column: 2; position: relative }
.times span:nth-child(2) { position: absolute; left: 33.33%; transform: translateX(-50%) }
.times span:nth-child(3) { position: absolute; left: 66.67%; transform: translateX(-50%) }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px }
.drawing { height: 160px; position: relative }
.drawing svg { width: 100%; height: 100%; display: block; overflow: visible }
.empty {
  position: absolute; inset: 0; display: grid; place-content: center; margin: 0; padding: 8px;
  text-align: center; color: var(--soft);
}
.grid { stroke: var(--edge); stroke-width: 1; vector-effect: non-scaling-stroke }
.line {
  fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke;
}
.line.one { stroke: var(--one) }
.line.two { stroke: var(--two) }
.swatch.one, .area.one { fill: var(--one) }
.swatch.two, .area.two { fill: var(--two) }
.area { opacity: .14 }
.summary, .note { font-size: 13px }
.scroll { overflow-x: auto; margin: 0 -16px; padding: 0 16px }
table {
  border-collapse: collapse; width: 100%; margin-top: 6px; font-variant-numeric: tabular-nums;
}
th {
  font-weight: 400; color: var(--soft); font-size: 13px; text-align: left;
  vertical-align: bottom;
}
td, th { padding: 4px 0 4px 14px; border-top: 1px solid var(--edge) }
thead th { border-top: 0 }
td:first-child, th:first-child {
  padding-left: 0; overflow-wrap: anywhere; color: var(--ink); font-size: inherit;
}
thead th:first-child { color: var(--soft); font-size: 13px }
tbody th { font-size: 15px }
.scroll th, .scroll td { white-space: nowrap; overflow-wrap: normal }
.n { text-align: right; white-space: nowrap }
td svg.share { display: block; width: 100%; height: 4px; margin-top: 3px }
.share rect { fill: var(--one) }
ol { list-style: none; margin: 6px 0 0; padding: 0 }
li { overflow-wrap: anywhere }
ol li { border-top: 1px solid var(--edge); padding: 6px 0 }
ol li:first-child { border-top: 0 }
li p { margin: 0 }
li .who { color: var(--soft); font-size: 13px }
.level { font-weight: 600 }
.level.well { color: var(--well) }
.level.warn { color: var(--warn) }
.level.bad { color: var(--bad) }
footer { padding: 14px 16px 28px; font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 18px }
a { color: var(--one) }
@media(max-width:760px) {
  main { grid-template-columns: minmax(0,1fr) }
  .drawing { height: 130px }
  dl { grid-template-columns: repeat(2,minmax(0,1fr)) }
  dl div { padding: 8px 12px }
  dl div:last-child:nth-child(odd) { grid-column: 1/-1 }
  dd { font-size: 20px }
}
""".strip()

_HASH: Final = base64.b64encode(sha256(STYLE.encode()).digest()).decode()

POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of everything that is served."""
