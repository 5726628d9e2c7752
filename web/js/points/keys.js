/**
 * The keyboard on the stage. Everything the mouse can do to points, it can do too.
 *
 * @typedef {import("./editor.js").Editor} Editor
 * @typedef {import("./gestures.js").Gestures} Gestures
 * @typedef {import("./view.js").View} View
 * @typedef {import("./view.js").Place} Place
 */
import { clampToPicture } from "./coordinates.js";

const STEP = 1;
const LARGE_STEP = 10;
const ZOOM = 1.25;
/** @type {Record<string, [number, number]>} */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Keys {
  /** Where Enter adds a point, in pixels of the picture; null for the middle. @type {Place | null} */
  cursor = null;

  /**
   * @param {HTMLElement} stage
   * @param {Editor} editor
   * @param {View} view
   * @param {Gestures} gestures
   * @param {() => void} changed called after everything that changes what is seen
   */
  constructor(stage, editor, view, gestures, changed) {
    this.stage = stage;
    this.editor = editor;
    this.view = view;
    this.gestures = gestures;
    this.changed = changed;
  }

  /** Listens until the signal. @param {AbortSignal} signal */
  listen(signal) {
    this.stage.addEventListener("keydown", (event) => this.#onDown(event), { signal });
    this.stage.addEventListener("keyup", (event) => event.key === " " && this.#pan(false), { signal });
    this.stage.addEventListener("blur", () => this.#pan(false), { signal });
  }

  /** The pixel at which Enter adds a point. @returns {Place} */
  get target() {
    const { stage } = this.view;
    const middle = () => this.view.toPicture({ x: stage.width / 2, y: stage.height / 2 });
    return clampToPicture(this.gestures.hover ?? this.cursor ?? middle(), this.view.picture);
  }

  /** @param {KeyboardEvent} event */
  #onDown(event) {
    const command = event.ctrlKey || event.metaKey;
    const handled = command || event.altKey ? command && this.#history(event) : this.#plain(event);
    if (!handled) return;
    event.preventDefault();
    event.stopPropagation();
    this.changed();
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether it was ours */
  #history(event) {
    const key = event.key.toLowerCase();
    if (event.altKey || (key !== "z" && key !== "y")) return false;
    if (key === "y" || event.shiftKey) this.editor.redo();
    else this.editor.undo();
    // The graph's undo has noted the event before any element sees it and asks for the keys in the next frame.
    for (const name of ["ctrlKey", "metaKey"]) Object.defineProperty(event, name, { value: false });
    return true;
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether it was ours */
  #plain(event) {
    const { editor, view } = this;
    const middle = { x: view.stage.width / 2, y: view.stage.height / 2 };
    if (event.key in ARROWS) return this.#arrow(ARROWS[event.key], event.shiftKey ? LARGE_STEP : STEP);
    switch (event.key) {
      case "Tab":
        return this.#select(event.shiftKey ? -1 : 1);
      case "Escape":
        return this.gestures.cancel() || this.#deselect();
      case "Enter":
        return this.#add();
      case "Delete":
      case "Backspace":
        // Taken without a selection, too: the host would delete the node.
        if (editor.selected) editor.remove(editor.selected);
        else editor.say("No point is selected. Tab selects one.");
        return true;
      case " ":
        this.#pan(true);
        return true;
      case "+":
      case "=":
        view.zoomAt(middle, ZOOM);
        return true;
      case "-":
        view.zoomAt(middle, 1 / ZOOM);
        return true;
      case "0":
        view.fit();
        return true;
      default:
        return this.#chooseSign(event.key.toLowerCase());
    }
  }

  /** @param {string} key */
  #chooseSign(key) {
    if (key !== "p" && key !== "n") return false;
    this.editor.sign = key === "p" ? "positive" : "negative";
    this.editor.say(`The next point is ${this.editor.sign}.`);
    return true;
  }

  /** @param {1 | -1} direction @returns {boolean} false at either end, so that the focus goes on to what follows */
  #select(direction) {
    const { editor } = this;
    const { entries } = editor;
    const current = entries.findIndex((entry) => editor.isSelected(entry));
    const next = current < 0 && direction < 0 ? entries.length - 1 : current + direction;
    editor.selected = entries[next] ?? null;
    if (!editor.selected) {
      this.changed();
      return false;
    }
    this.view.reveal(editor.point(editor.selected));
    editor.describeSelected();
    return true;
  }

  #deselect() {
    if (!this.editor.selected) return false;
    this.editor.selected = null;
    this.editor.say("No point selected.");
    return true;
  }

  /** @param {[number, number]} direction @param {number} step */
  #arrow([right, down], step) {
    const { editor } = this;
    if (!editor.size) return false;
    if (editor.selected) {
      const { sign, index } = editor.selected;
      if (!editor.canChange(sign)) return true;
      const { x, y } = editor.point(editor.selected);
      editor.moveSelected({ x: x + right * step, y: y + down * step });
      editor.commit(`move ${sign} ${index}`);
      this.view.reveal(editor.point(editor.selected));
      editor.describeSelected();
      return true;
    }
    const { x, y } = this.target;
    this.gestures.hover = null;
    this.cursor = clampToPicture({ x: x + right * step, y: y + down * step }, editor.size);
    this.view.reveal(this.cursor);
    editor.say(`Cursor at ${this.cursor.x}, ${this.cursor.y}.`);
    return true;
  }

  #add() {
    const { editor } = this;
    if (editor.add(editor.sign, this.target)) {
      editor.commit();
      editor.describeSelected();
    }
    return true;
  }

  /** @param {boolean} on */
  #pan(on) {
    this.gestures.panning = on;
    this.changed();
  }
}
