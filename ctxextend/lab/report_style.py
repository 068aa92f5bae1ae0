"""The style sheet of a report: no font, picture or script from anywhere, light and dark, desk, telephone and paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --muted: #5b6470; --line: #d9dde3; --shade: #f2f4f8; --surface: #ffffff; --card: #f7f8fa;
  --good: #00693e; --bad: #b3261e; --good-back: #e6f4ec; --bad-back: #fdecea;
  --series-0: #59616b; --series-1: #0072b2; --series-2: #c4500a; --series-3: #00795a; --series-4: #a8457f;
  --series-5: #8a6100; --series-6: #3f51b5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaed; --muted: #a3abb6; --line: #363c45; --shade: #1d2229; --surface: #14171b; --card: #1c2026;
    --good: #6fd3a0; --bad: #ff9d94; --good-back: #15301f; --bad-back: #3a1c1a;
    --series-0: #a3abb6; --series-1: #56b4e9; --series-2: #ff9350; --series-3: #34c99e; --series-4: #e59ac6;
    --series-5: #e6b422; --series-6: #9fa8f5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--surface); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 752px; margin: 0 auto; padding: 40px 16px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; line-height: 1.3; margin: 48px 0 6px; letter-spacing: -0.005em; }
h3 { font-size: 16px; margin: 28px 0 4px; }
p { margin: 0 0 12px; max-width: 66ch; }
.kind { color: var(--muted); font-size: 14px; margin: 0; }
.lead { color: var(--muted); }
.verdict { border-left: 4px solid var(--line); background: var(--card); padding: 12px 16px; margin: 20px 0 0; }
.verdict > :last-child { margin-bottom: 0; }
.verdict strong { font-size: 18px; }
.verdict.good { border-color: var(--good); background: var(--good-back); }
.verdict.bad { border-color: var(--bad); background: var(--bad-back); }
.verdict ul { margin: 6px 0 0; padding: 0; list-style: none; }
.verdict li { margin: 4px 0; padding-left: 68px; text-indent: -68px; }
.word { display: inline-block; width: 68px; text-indent: 0; font-weight: 600; font-size: 14px; }
.good .word, .word.good { color: var(--good); }
.word.bad { color: var(--bad); }
.word.none { color: var(--muted); }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 1px; margin: 24px 0 0;
  background: var(--line); border: 1px solid var(--line);
}
.figures div { background: var(--surface); padding: 12px 14px; }
.figures dt { color: var(--muted); font-size: 13px; line-height: 1.35; }
.figures dd { margin: 4px 0 0; font-size: 13px; line-height: 1.35; color: var(--muted); }
.figures dd:first-of-type { font-size: 24px; line-height: 1.2; color: var(--ink); font-variant-numeric: tabular-nums; }
figure { margin: 12px 0 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg.narrow { display: none; }
svg * { stroke-linejoin: round; }
@media (max-width: 640px) {
  main { padding-top: 24px; }
  h1 { font-size: 24px; }
  svg.wide { display: none; }
  svg.narrow { display: block; max-width: 440px; }
  .figures { grid-template-columns: 1fr 1fr; }
}
/* The shadows at the edges show only where there is more to scroll to. */
.scroll {
  overflow-x: auto; margin: 0 0 8px;
  background:
    linear-gradient(to right, var(--surface) 50%, transparent) left / 40px 100% local no-repeat,
    linear-gradient(to left, var(--surface) 50%, transparent) right / 40px 100% local no-repeat,
    linear-gradient(to right, var(--line), transparent) left / 14px 100% scroll no-repeat,
    linear-gradient(to left, var(--line), transparent) right / 14px 100% scroll no-repeat;
}
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4; font-variant-numeric: tabular-nums; }
.caption { font-weight: 600; font-size: 14px; margin: 16px 0 4px; }
th, td {
  text-align: right; padding: 4px 0 4px 20px; border-bottom: 1px solid var(--line); white-space: nowrap;
  overflow-wrap: normal;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; white-space: normal; line-height: 1.25; }
tbody th { font-weight: 500; }
td.words, th.words { text-align: left; }
details { margin: 12px 0; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
dl.how {
  display: grid; grid-template-columns: minmax(6.5em, max-content) 1fr; gap: 6px 20px; margin: 12px 0; font-size: 15px;
}
dl.how dt { color: var(--muted); }
dl.how dd { margin: 0; min-width: 0; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 48px; padding-top: 12px; border-top: 1px solid var(--line); color: var(--muted); font-size: 14px; }
@media print {
  :root {
    color-scheme: light;
    --ink: #1b1f24; --muted: #5b6470; --line: #d9dde3; --shade: #f2f4f8; --surface: #ffffff; --card: #f7f8fa;
    --good: #00693e; --bad: #b3261e; --good-back: #e6f4ec; --bad-back: #fdecea;
    --series-0: #59616b; --series-1: #0072b2; --series-2: #c4500a; --series-3: #00795a; --series-4: #a8457f;
    --series-5: #8a6100; --series-6: #3f51b5;
  }
  body { font-size: 11pt; }
  main { padding: 0; max-width: none; }
  figure, tr, .verdict, .figures { break-inside: avoid; }
  h2, h3, .caption { break-after: avoid; }
  svg.wide { display: block; max-width: 720px; }
  svg.narrow { display: none; }
  .scroll { overflow: visible; background: none; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
