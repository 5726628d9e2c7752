/**
 * The editor as an element: toolbar, stage, status line.
 *
 * @typedef {import("./draw.js").Mode} Mode
 */
import { isInside, SIGNS } from "./coordinates.js";
import { Backdrop, drawCursor, drawMarker } from "./draw.js";
import { Editor } from "./editor.js";
import { Gestures } from "./gestures.js";
import { recordChange, textSlot } from "./host.js";
import { Keys } from "./keys.js";
import { LiveElement, ratioOf, setText, startDrawing } from "./live.js";
import { buildParts } from "./parts.js";
import { Scenery } from "./scenery.js";
import { View } from "./view.js";

/** How long a message stays in the status line. */
const MESSAGE_MS = 5000;
/** Changes by the arrow keys are one step of the graph's undo once they pause for this long. */
const PAUSE_MS = 700;
const NO_PICTURE =
  "Connect a picture to image. If another node makes it, put a Preview Image beside this one and run: then it is here.";
const BROKEN_PICTURE = "The connected picture cannot be shown: its file is missing or no picture.";
const HINT = "Click: on the subject. Right click: leave out. Drag moves, a double click removes a point. Wheel zooms.";

export class PointEditorElement extends LiveElement {
  #parts = buildParts(this);
  #view = new View();
  #backdrop = new Backdrop();
  #scenery = new Scenery(() => this.look());
  #editor = new Editor({
    read: (sign) => textSlot(this.node, sign),
    write: (sign, text) => textSlot(this.node, sign).write(text),
    record: (soon) => this.#record(soon),
  });
  #changed = () => this.requestDraw();
  #gestures = new Gestures(this.#parts.stage, this.#editor, this.#view, this.#changed);
  #keys = new Keys(this.#parts.stage, this.#editor, this.#view, this.#gestures, this.#changed);
  #pause = 0;
  #message = { text: "", until: 0 };
  /** What was drawn last, as far as it comes from outside. @type {unknown[]} */
  #seen = [];

  constructor() {
    super();
    this.#editor.say = (text) => {
      this.#message = { text, until: performance.now() + MESSAGE_MS };
    };
    const { signs, modes, actions } = this.#parts;
    for (const sign of SIGNS) this.#onClick(signs.get(sign), () => (this.#editor.sign = sign));
    modes.forEach((button, mode) => this.#onClick(button, () => this.#scenery.show(/** @type {Mode} */ (mode))));
    this.#onClick(actions.get("undo"), () => this.#editor.undo());
    this.#onClick(actions.get("redo"), () => this.#editor.redo());
    this.#onClick(actions.get("clear"), () => this.#editor.clear());
    this.#onClick(actions.get("fit"), () => this.#view.fit());
    for (const name of ["focus", "blur"]) this.#parts.stage.addEventListener(name, this.#changed);
  }

  get stages() {
    return [this.#parts.stage];
  }

  get isBusy() {
    return this.#gestures.active;
  }

  /** @param {AbortSignal} signal */
  listen(signal) {
    this.#gestures.listen(signal);
    this.#keys.listen(signal);
    signal.addEventListener("abort", () => this.#pause && this.#record(false));
  }

  disconnectedCallback() {
    this.#gestures.cancel();
    super.disconnectedCallback();
  }

  refresh() {
    const edited = this.#editor.refresh();
    this.#scenery.look(this.node, this.#editor.texts);
    const { scene, size, note, failed } = this.#scenery;
    this.#editor.size = size;
    if (size && this.#view.show(size)) this.#message.until = 0;
    const seen = [scene, size?.width, size?.height, note, failed, ratioOf(this.#parts.stage), this.#currentMessage];
    if (edited || seen.some((value, index) => value !== this.#seen[index])) this.requestDraw();
    this.#seen = seen;
  }

  get #currentMessage() {
    return performance.now() < this.#message.until ? this.#message.text : "";
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.#parts.stage;
    this.#view.resize({ width, height });
    this.requestDraw();
  }

  /** @param {HTMLElement | undefined} button @param {() => void} action */
  #onClick(button, action) {
    button?.addEventListener("click", () => {
      action();
      this.requestDraw();
    });
  }

  /** @param {boolean} soon */
  #record(soon) {
    clearTimeout(this.#pause);
    this.#pause = soon ? window.setTimeout(() => this.#record(false), PAUSE_MS) : 0;
    if (soon) return;
    recordChange();
    this.dispatchEvent(new Event("change"));
  }

  draw() {
    this.#drawStage();
    this.#describe();
  }

  #drawStage() {
    const { canvas, stage } = this.#parts;
    const backdrop = this.#backdrop.render(this.#scenery.scene, this.#view, ratioOf(stage));
    const context = startDrawing(canvas, backdrop, this.#view.stage);
    if (!this.#editor.size) return;
    this.#drawMarkers(context);
    const focused = this.shadowRoot?.activeElement === this.#parts.stage;
    const cursor = this.#editor.selected || this.#gestures.hover ? null : this.#keys.cursor;
    if (focused && cursor) drawCursor(context, this.#view.toStage({ x: cursor.x + 0.5, y: cursor.y + 0.5 }));
  }

  /** @param {CanvasRenderingContext2D} context in stage pixels */
  #drawMarkers(context) {
    const { entries, size } = this.#editor;
    const { hovered } = this.#gestures;
    const isSelected = (/** @type {import("./editor.js").Entry} */ entry) => this.#editor.isSelected(entry);
    // The selected one comes last, above the others.
    for (const entry of [...entries.filter((each) => !isSelected(each)), ...entries.filter(isSelected)]) {
      drawMarker(context, {
        place: this.#gestures.markerPlace(entry),
        sign: entry.sign,
        label: `${entry.index + 1}`,
        selected: isSelected(entry),
        hovered: hovered?.sign === entry.sign && hovered.index === entry.index,
        inside: size !== null && isInside(this.#editor.point(entry), size),
      });
    }
  }

  /** Brings texts, buttons and the mouse pointer up to date. */
  #describe() {
    const { signs, modes, actions, stage, empty, status, where, note } = this.#parts;
    const { scene, failed } = this.#scenery;
    const { entries, size } = this.#editor;
    const usable = { picture: true, mask: scene.mask !== null, heat: scene.heat !== null };
    for (const sign of SIGNS) press(signs.get(sign), sign === this.#editor.sign, !this.#editor.locks[sign]);
    for (const [mode, enabled] of Object.entries(usable)) press(modes.get(mode), mode === scene.mode, enabled);
    enable(actions.get("undo"), this.#editor.canUndo);
    enable(actions.get("redo"), this.#editor.canRedo);
    enable(actions.get("clear"), entries.some(({ sign }) => !this.#editor.locks[sign]));
    enable(actions.get("fit"), !this.#view.isFitted);
    stage.classList.toggle("on-point", this.#gestures.hovered !== null);
    stage.classList.toggle("panning", this.#gestures.panning);
    stage.classList.toggle("without-picture", size === null);
    setText(empty, size ? "" : failed ? BROKEN_PICTURE : NO_PICTURE);
    const problem = this.#problem();
    status.classList.toggle("problem", problem !== "");
    setText(status, this.#currentMessage || problem || this.#summary());
    status.title = status.textContent ?? "";
    setText(where, this.#where());
    setText(note, this.#scenery.note || (size ? HINT : ""));
    note.title = this.#scenery.note;
  }

  /** Why some points cannot be changed here, or the node will refuse them. */
  #problem() {
    const { locks, outside, size } = this.#editor;
    const locked = SIGNS.filter((sign) => locks[sign]).map((sign) => `${sign}_coords ${locks[sign]}`);
    if (locked.length) return `Read only: ${locked.join("; ")}.`;
    if (!outside.length || !size) return "";
    const names = outside.map((entry) => this.#editor.nameOf(entry).toLowerCase()).join(", ");
    return `Outside the picture of ${size.width} × ${size.height}: ${names}. Move or remove them.`;
  }

  #summary() {
    const { positive, negative } = this.#editor.points;
    const missing = positive.length ? "" : ": click on the subject";
    if (positive.length + negative.length) return `${positive.length} positive, ${negative.length} negative${missing}`;
    return this.#editor.size ? `No points yet${missing}.` : "";
  }

  #where() {
    const { size, selected } = this.#editor;
    if (!size) return "";
    const { hover } = this.#gestures;
    const below = hover && { x: Math.floor(hover.x), y: Math.floor(hover.y) };
    const place = below ?? (selected && this.#editor.point(selected));
    const zoom = this.#view.isFitted ? "" : ` · ${Math.round(this.#view.scale * 100)} %`;
    return (place ? `${place.x}, ${place.y}` : `${size.width} × ${size.height}`) + zoom;
  }
}

/** @param {HTMLButtonElement | undefined} button @param {boolean} enabled */
function enable(button, enabled) {
  if (button) button.disabled = !enabled;
}

/** @param {HTMLButtonElement | undefined} button @param {boolean} pressed @param {boolean} enabled */
function press(button, pressed, enabled) {
  button?.setAttribute("aria-pressed", `${pressed}`);
  enable(button, enabled);
}
