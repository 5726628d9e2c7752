/**
 * The editor's elements, without any behaviour.
 *
 * @typedef {ReturnType<typeof buildParts>} Parts
 */

/** @param {string} paths */
const icon = (paths) => `<svg viewBox="0 0 16 16" aria-hidden="true">${paths}</svg>`;

const ICONS = {
  positive: icon('<circle cx="8" cy="8" r="7" class="positive"/><path d="M8 4.5v7M4.5 8h7" class="glyph"/>'),
  negative: icon('<rect x="1.5" y="1.5" width="13" height="13" rx="1.5" class="negative"/><path d="M4.5 8h7" class="glyph"/>'),
  undo: icon('<path d="M5.5 3 2.5 6l3 3M3 6h6a4 4 0 0 1 0 8H6.5"/>'),
  redo: icon('<path d="m10.5 3 3 3-3 3M13 6H7a4 4 0 0 0 0 8h2.5"/>'),
  fit: icon('<path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/>'),
  clear: icon('<path d="M2.5 4.5h11M6 4.5v-2h4v2M4 4.5l.7 9h6.6l.7-9M6.7 7v4M9.3 7v4"/>'),
};

const MARKUP = `
<link rel="stylesheet" href="${new URL("./editor.css", import.meta.url).href}">
<div class="bar" role="toolbar" aria-label="Points">
  <span class="group" role="group" aria-label="Sign of the next point">
    <button data-sign="positive" aria-label="Subject" title="Click adds a positive point: on the subject (P)">${ICONS.positive}<span>Subject</span></button>
    <button data-sign="negative" aria-label="Leave out" title="Click adds a negative point: on what to leave out (N). A shift or right click always does.">${ICONS.negative}<span>Leave out</span></button>
  </span>
  <span class="group" role="group" aria-label="What is shown">
    <button data-mode="picture" title="Show the picture alone">Picture</button>
    <button data-mode="mask" title="Show the mask of the last run: outlined, the rest darkened">Mask</button>
    <button data-mode="heat" title="Show the similarity of the last run, with the mask's outline">Heat map</button>
  </span>
  <span class="group" role="group" aria-label="Changes">
    <button data-action="undo" title="Undo (Ctrl+Z)" aria-label="Undo">${ICONS.undo}</button>
    <button data-action="redo" title="Redo (Ctrl+Shift+Z)" aria-label="Redo">${ICONS.redo}</button>
    <button data-action="fit" title="Show the whole picture (0)" aria-label="Show the whole picture">${ICONS.fit}</button>
    <button data-action="clear" title="Remove all points" aria-label="Remove all points">${ICONS.clear}</button>
  </span>
</div>
<div class="stage" tabindex="0" role="application" aria-label="Point editor" aria-describedby="keys">
  <canvas aria-hidden="true"></canvas>
  <p class="empty"></p>
</div>
<p class="keys" id="keys">Enter adds a point at the cursor, arrow keys move the cursor or the selected point, with Shift by ten
pixels. Tab selects the next point, Delete removes it, P and N choose the sign of the next point, Control Z undoes, plus, minus
and zero zoom.</p>
<div class="foot"><span class="status" role="status" aria-live="polite"></span><span class="where" aria-hidden="true"></span></div>
<div class="note"></div>`;

/** @param {HTMLElement} host gets a shadow root, so that styles of other packs do not reach the editor */
export function buildParts(host) {
  const root = host.attachShadow({ mode: "open" });
  root.innerHTML = MARKUP;
  const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (root.querySelector(selector));
  /** @param {string} name @returns {Map<string, HTMLButtonElement>} */
  const buttons = (name) =>
    new Map([...root.querySelectorAll("button")].flatMap((each) => (each.dataset[name] ? [[each.dataset[name], each]] : [])));
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
