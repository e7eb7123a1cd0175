"""The page's looks: one style sheet, light and dark, from a phone's width to a wide screen."""

CSS = """
:root { color-scheme: light dark;
  --page: #fbfbf9; --panel: #ffffff; --ink: #1b1b19; --soft: #5d5c57; --line: #e3e2dc; --wash: #f2f1ec;
  --keep: #2a6fc4; --drop: #e2783a; --before: #b9b7ae; --accent: #2a6fc4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #161615; --panel: #1f1f1d; --ink: #eeede8; --soft: #a5a39b; --line: #383733; --wash: #282826;
  --keep: #5b9ae6; --drop: #e58a50; --before: #6d6b64; --accent: #7fb2f0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .35rem; }
p { margin: .35rem 0 .75rem; }
.lead { font-size: 1.1rem; color: var(--soft); max-width: 46rem; margin-bottom: 1.25rem; }
.note { color: var(--soft); font-size: .92rem; max-width: 46rem; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.1rem 1.2rem;
  margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: .8rem .95rem; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.15; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
nav { margin: 1.1rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem .9rem; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.bars { display: grid; gap: .4rem; margin-top: .6rem; }
.bars { grid-template-columns: minmax(5rem, auto) minmax(5rem, 1fr) auto; }
.row { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr 9rem; gap: .2rem .75rem; align-items: center; }
.bars .row { grid-column: 1 / -1; grid-template-columns: subgrid; }
.row .name { overflow-wrap: anywhere; font-size: .94rem; }
.row .value { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); font-size: .88rem; }
.bar { display: block; width: 100%; height: 14px; background: var(--wash); border-radius: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; color: var(--soft);
  margin: .3rem 0 .2rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin-top: .6rem; }
th { text-align: right; font-weight: 600; color: var(--soft); padding: .25rem .5rem;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.words, th.words { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
td.wide { min-width: 15rem; }
td.picture { min-width: 7rem; width: 34%; }
.plot svg { display: block; width: 100%; height: 170px; border-bottom: 1px solid var(--soft); }
.plot .top, .curve .top { font-size: .82rem; color: var(--soft); }
.axis { display: flex; }
.axis span { flex: 1 1 0; min-width: 0; font-size: .8rem; color: var(--soft); overflow: visible;
  white-space: nowrap; }
.unit { text-align: center; color: var(--soft); font-size: .82rem; margin: .15rem 0 0; }
.curve { position: relative; padding-left: 2.6rem; }
.curve svg { display: block; width: 100%; height: 190px; }
.curve .grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; fill: none; }
.curve polyline { fill: none; stroke: var(--keep); stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.curve .side { position: absolute; left: 0; top: 1.4rem; height: 190px; width: 2.3rem; }
.side span { position: absolute; right: 0; transform: translateY(50%); font-size: .78rem; color: var(--soft); }
.decades { position: relative; height: 1.2rem; }
.decades span { position: absolute; transform: translateX(-50%); font-size: .78rem; color: var(--soft); }
details { border-top: 1px solid var(--line); padding: .45rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; } summary .row { display: inline-grid; width: calc(100% - 1.4rem); vertical-align: middle; }
.example { margin: .6rem 0 .9rem; padding-left: .8rem; border-left: 3px solid var(--line); }
.example.kept { border-left-color: var(--keep); }
.example .id { font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
.example .why { font-size: .9rem; overflow-wrap: anywhere; }
pre { margin: .25rem 0 0; padding: .55rem .7rem; background: var(--wash); border-radius: 8px; font-size: .82rem;
  line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 15rem; overflow-y: auto;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; unicode-bidi: plaintext; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em;
  overflow-wrap: anywhere; }
.tokens { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: .5rem; }
.tokens span { background: var(--wash); border-radius: 6px; padding: .1rem .45rem; font-size: .85rem;
  white-space: pre; }
.tokens span small { color: var(--soft); margin-left: .35em; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.6rem; }
footer { color: var(--soft); font-size: .85rem; margin-top: 1.5rem; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 1.2rem .7rem 3rem; } section { padding: .9rem .8rem 1rem; }
  .bars { grid-template-columns: minmax(0, 1fr); }
  .row, .bars .row { grid-template-columns: 1fr auto; } .row .bar { grid-column: 1 / -1; grid-row: 2; }
  .tile b { font-size: 1.35rem; } td.wide { min-width: 15rem; }
td.picture { min-width: 5rem; } }
@media print { pre { max-height: none; } section { break-inside: avoid; } }
"""
