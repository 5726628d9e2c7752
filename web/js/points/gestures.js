/**
 * Mouse, pen and touch on the stage.
 *
 * @typedef {import("./editor.js").Editor} Editor
 * @typedef {import("./editor.js").Entry} Entry
 * @typedef {import("./view.js").View} View
 * @typedef {import("./view.js").Place} Place
 * @typedef {{ move: (place: Place) => void, finish: () => void, cancel: () => void }} Gesture
 */
import { MARKER_RADIUS } from "./draw.js";
import { placeOn } from "./live.js";
import { hitMarker } from "./view.js";

const REACH = MARKER_RADIUS + 4;
/** A press within this many stage pixels of the picture counts for its nearest pixel. */
const NEAR = 12;
/** A press that moves less is a click. */
const STILL = 3;
const DOUBLE_CLICK_MS = 350;
const WHEEL_STEP = 1.0015;

export class Gestures {
  /** @type {Gesture | null} */
  #gesture = null;
  /** Which mouse, pen or finger the gesture belongs to. */
  #pointer = -1;
  /** @type {{ entry: Entry, time: number } | null} */
  #lastPress = null;
  /** Where the pointer is over the picture. @type {Place | null} */
  hover = null;
  /** @type {Entry | null} */
  hovered = null;
  /** Whether the space bar is held, so that a drag moves the view. */
  panning = false;

  /**
   * @param {HTMLElement} stage
   * @param {Editor} editor
   * @param {View} view
   * @param {() => void} changed called after everything that changes what is seen
   */
  constructor(stage, editor, view, changed) {
    this.stage = stage;
    this.editor = editor;
    this.view = view;
    this.changed = changed;
  }

  /** Listens until the signal. @param {AbortSignal} signal */
  listen(signal) {
    const own = { signal };
    // The host sends the wheel and the middle button to the graph before a widget sees them, so these are taken first.
    const first = { signal, capture: true, passive: false };
    window.addEventListener("wheel", (event) => this.#onWheel(event), first);
    window.addEventListener("pointerdown", (event) => event.button === 1 && this.#onDown(event), first);
    window.addEventListener("pointerdown", (event) => isFurtherFinger(event) && this.#giveUp(), first);
    window.addEventListener("pointermove", (event) => this.#onDrag(event), first);
    window.addEventListener("pointerup", (event) => this.#onUp(event), first);
    this.stage.addEventListener("pointerdown", (event) => event.button !== 1 && this.#onDown(event), own);
    this.stage.addEventListener("pointermove", (event) => this.#onHover(event), own);
    this.stage.addEventListener("pointerleave", () => this.#leave(), own);
    this.stage.addEventListener("pointercancel", () => this.cancel(), own);
    this.stage.addEventListener("contextmenu", stop, own);
    // Keeps the browser from scrolling with the middle button, and on Linux from pasting into the graph what was copied.
    for (const name of ["mousedown", "mouseup", "auxclick"]) {
      this.stage.addEventListener(name, (event) => event.button === 1 && event.preventDefault(), own);
    }
  }

  get active() {
    return this.#gesture !== null;
  }

  /** Ends a drag and puts everything back. @returns {boolean} whether there was one */
  cancel() {
    const gesture = this.#gesture;
    this.#gesture = null;
    gesture?.cancel();
    this.changed();
    return gesture !== null;
  }

  /** What one finger has begun is undone when a second one comes: together they pinch, wherever each of them is. */
  #giveUp() {
    this.#lastPress = null;
    this.cancel();
  }

  /** @param {Entry} entry @returns {Place} the stage position of a point's marker */
  markerPlace(entry) {
    const { x, y } = this.editor.point(entry);
    const { width, height } = this.view.picture;
    // A point stands for a whole pixel, so its marker is in the pixel's middle. Those outside wait at the edge.
    const middle = (/** @type {number} */ value, /** @type {number} */ count) =>
      Math.max(0, Math.min(Math.floor(value) + 0.5, count));
    return this.view.toStage({ x: middle(x, width), y: middle(y, height) });
  }

  /** @param {Place} place @returns {Entry | null} */
  #hit(place) {
    const { entries } = this.editor;
    return entries[hitMarker(entries.map((entry) => this.markerPlace(entry)), place, REACH)] ?? null;
  }

  /** @param {PointerEvent} event */
  #onDown(event) {
    if (!event.composedPath().includes(this.stage)) return;
    event.stopPropagation();
    this.stage.focus({ preventScroll: true });
    if (this.#gesture || event.button > 2 || isFurtherFinger(event)) return;
    this.#pointer = event.pointerId;
    this.stage.setPointerCapture(this.#pointer);
    const place = placeOn(this.stage, event);
    if (event.button === 1 || this.panning) this.#gesture = this.#panFrom(place);
    else this.#press(place, event.button === 2 || event.shiftKey);
    this.changed();
  }

  /** @param {Place} place @param {boolean} negative */
  #press(place, negative) {
    const { editor, view } = this;
    const entry = this.#hit(place);
    if (entry) {
      const again = this.#lastPress?.entry;
      const twice = again?.sign === entry.sign && again.index === entry.index && isRecent(this.#lastPress);
      this.#lastPress = twice ? null : { entry, time: performance.now() };
      if (twice) editor.remove(entry);
      else this.#gesture = this.#dragPoint(entry, place);
      return;
    }
    this.#lastPress = null;
    if (!editor.size || view.distanceToPicture(place) > NEAR) {
      editor.selected = null;
      return;
    }
    if (editor.add(negative ? "negative" : editor.sign, view.toPicture(place))) this.#gesture = this.#placing();
  }

  /** A new point follows the pointer until the button is released. @returns {Gesture} */
  #placing() {
    const { editor, view } = this;
    return {
      move: (to) => editor.moveSelected(view.toPicture(to)),
      finish: () => {
        editor.commit();
        editor.describeSelected();
      },
      cancel: () => editor.revert(),
    };
  }

  /** @param {Entry} entry @param {Place} from @returns {Gesture | null} */
  #dragPoint(entry, from) {
    const { editor, view } = this;
    editor.selected = entry;
    editor.describeSelected();
    let moved = false;
    // The point keeps its distance to the pointer, so that it does not jump when it is taken beside its middle.
    const start = this.markerPlace(entry);
    return {
      move: (to) => {
        const still = Math.hypot(to.x - from.x, to.y - from.y) < STILL;
        if ((!moved && still) || !editor.canChange(entry.sign)) return;
        moved = true;
        editor.moveSelected(view.toPicture({ x: start.x + to.x - from.x, y: start.y + to.y - from.y }));
      },
      finish: () => {
        if (!moved) return;
        editor.commit();
        editor.describeSelected();
      },
      cancel: () => editor.revert(),
    };
  }

  /** @param {Place} from @returns {Gesture} */
  #panFrom(from) {
    let last = from;
    return {
      move: (to) => {
        this.view.pan(to.x - last.x, to.y - last.y);
        last = to;
      },
      finish: () => {},
      cancel: () => {},
    };
  }

  /** @param {PointerEvent} event */
  #onDrag(event) {
    if (!this.#gesture || event.pointerId !== this.#pointer) return;
    event.stopPropagation();
    const place = placeOn(this.stage, event);
    this.#gesture.move(place);
    this.#setHover(place);
    this.changed();
  }

  /** @param {PointerEvent} event */
  #onUp(event) {
    if (!this.#gesture || event.pointerId !== this.#pointer) return;
    event.stopPropagation();
    const gesture = this.#gesture;
    this.#gesture = null;
    gesture.finish();
    this.changed();
  }

  /** @param {PointerEvent} event */
  #onHover(event) {
    if (this.#gesture) return;
    this.#setHover(placeOn(this.stage, event));
    this.changed();
  }

  /** @param {Place} place */
  #setHover(place) {
    this.hovered = this.#hit(place);
    this.hover = this.editor.size && this.view.distanceToPicture(place) === 0 ? this.view.toPicture(place) : null;
  }

  #leave() {
    this.hover = null;
    this.hovered = null;
    this.changed();
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    if (!event.composedPath().includes(this.stage) || !this.editor.size) return;
    // Pinching and sideways scrolling stay with the graph, and so does zooming out of a picture that is fitted.
    const ofGraph = event.ctrlKey || event.metaKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (ofGraph || (this.view.isFitted && event.deltaY > 0)) return;
    stop(event);
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1;
    this.view.zoomAt(placeOn(this.stage, event), WHEEL_STEP ** (-event.deltaY * lines));
    this.changed();
  }
}

/** @param {PointerEvent} event */
function isFurtherFinger(event) {
  return event.pointerType === "touch" && !event.isPrimary;
}

/** @param {{ time: number } | null} press */
function isRecent(press) {
  return press !== null && performance.now() - press.time < DOUBLE_CLICK_MS;
}

/** @param {Event} event */
function stop(event) {
  event.preventDefault();
  event.stopPropagation();
}
