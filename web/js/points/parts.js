/**
 * The editor's elements, without any behaviour.
 *
 * @typedef {ReturnType<typeof buildParts>} Parts
 */

/** @param {string} shapes */
const icon = (shapes) => `<svg viewBox="0 0 16 16" aria-hidden="true">${shapes}</svg>`;

/**
 * @param {string} data name of the data attribute, and its value
 * @param {string} label
 * @param {string} tip
 * @param {string} content the label itself, or an icon
 */
const button = (data, label, tip, content = label) =>
  `<button data-${data} aria-label="${label}" title="${tip}">${content}</button>`;

/** @param {string} label @param {string[]} buttons */
const group = (label, ...buttons) =>
  `<span class="group" role="group" aria-label="${label}">${buttons.join("")}</span>`;

const PLUS = icon('<circle cx="8" cy="8" r="7" class="positive"/><path d="M8 4.5v7M4.5 8h7" class="glyph"/>');
const MINUS = icon(
  '<rect x="1.5" y="1.5" width="13" height="13" rx="1.5" class="negative"/><path d="M4.5 8h7" class="glyph"/>',
);
const UNDO = icon('<path d="M5.5 3 2.5 6l3 3M3 6h6a4 4 0 0 1 0 8H6.5"/>');
const REDO = icon('<path d="m10.5 3 3 3-3 3M13 6H7a4 4 0 0 0 0 8h2.5"/>');
const FIT = icon('<path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/>');
const CLEAR = icon('<path d="M2.5 4.5h11M6 4.5v-2h4v2M4 4.5l.7 9h6.6l.7-9M6.7 7v4M9.3 7v4"/>');

const SIGN_BUTTONS = group(
  "Sign of the next point",
  button(
    'sign="positive"',
    "Subject",
    "Click adds a positive point: on the subject (P)",
    `${PLUS}<span>Subject</span>`,
  ),
  button(
    'sign="negative"',
    "Leave out",
    "Click adds a negative point: on what to leave out (N). A right click or a Shift-click always does.",
    `${MINUS}<span>Leave out</span>`,
  ),
);
const MODE_BUTTONS = group(
  "What is shown",
  button('mode="picture"', "Picture", "Show the picture alone"),
  button('mode="mask"', "Mask", "Show the mask of the last run: outlined, the rest darkened"),
  button('mode="heat"', "Heat map", "Show the similarity of the last run, with the mask's outline"),
);
const ACTION_BUTTONS = group(
  "Changes",
  button('action="undo"', "Undo", "Undo (Ctrl+Z)", UNDO),
  button('action="redo"', "Redo", "Redo (Ctrl+Shift+Z)", REDO),
  button('action="fit"', "Show the whole picture", "Show the whole picture (0)", FIT),
  button('action="clear"', "Remove all points", "Remove all points", CLEAR),
);

/** What stands below a stage, as high whatever it says. */
export const WORDS = `<div class="words">
  <div class="foot">
    <span class="status" role="status" aria-live="polite"></span>
    <span class="where" aria-hidden="true"></span>
  </div>
  <div class="note"></div>
</div>`;

const MARKUP = `
<link rel="stylesheet" href="${new URL("./editor.css", import.meta.url).href}">
<div class="bar" role="toolbar" aria-label="Points">${SIGN_BUTTONS}${MODE_BUTTONS}${ACTION_BUTTONS}</div>
<div class="stage without-picture" tabindex="0" role="application" aria-label="Point editor" aria-describedby="keys">
  <canvas aria-hidden="true"></canvas>
  <p class="empty"></p>
</div>
<p class="keys" id="keys">
  Enter adds a point at the cursor, arrow keys move the cursor or the selected point, with Shift by ten pixels.
  Tab selects the next point, Delete removes it, P and N choose the sign of the next point, Control Z undoes,
  plus, minus and zero zoom.
</p>
${WORDS}`;

/** @param {HTMLElement} host gets a shadow root, so that styles of other packs do not reach the editor */
export function buildParts(host) {
  const root = host.attachShadow({ mode: "open" });
  root.innerHTML = MARKUP;
  const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (root.querySelector(selector));
  /** @param {string} name @returns {Map<string, HTMLButtonElement>} */
  const buttons = (name) => {
    const named = /** @type {HTMLButtonElement[]} */ ([...root.querySelectorAll(`button[data-${name}]`)]);
    return new Map(named.map((each) => [each.dataset[name] ?? "", each]));
  };
  return {
    stage: find(".stage"),
    canvas: /** @type {HTMLCanvasElement} */ (root.querySelector("canvas")),
    empty: find(".empty"),
    status: find(".status"),
    where: find(".where"),
    note: find(".note"),
    signs: buttons("sign"),
    modes: buttons("mode"),
    actions: buttons("action"),
  };
}
