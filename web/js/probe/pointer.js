/**
 * Mouse, pen, touch and keyboard on the picture: where the probe is.
 *
 * @typedef {import("../points/view.js").View} View
 * @typedef {import("../points/view.js").Place} Place
 */
import { clampToPicture } from "../points/coordinates.js";
import { ARROWS } from "../points/keys.js";
import { placeOn } from "../points/live.js";

/** Arrow keys move by this share of the picture's longer side, with Shift by four times as much. */
const STEP = 1 / 32;
const LARGE_STEP = 4 / 32;

export class Pointer {
  /** Pixel of the picture that is looked from, null for the chosen spot. @type {Place | null} */
  place = null;
  #stage;
  #view;
  #rest;
  #changed;
  #choose;

  /**
   * @param {HTMLElement} stage
   * @param {View} view
   * @param {() => Place} rest where the chosen spot is
   * @param {() => void} changed called when the place is another one
   * @param {(place: Place) => void} choose called with a pixel that shall be the spot
   */
  constructor(stage, view, rest, changed, choose) {
    this.#stage = stage;
    this.#view = view;
    this.#rest = rest;
    this.#changed = changed;
    this.#choose = choose;
  }

  /** Listens until the signal. @param {AbortSignal} signal */
  listen(signal) {
    const own = { signal };
    this.#stage.addEventListener("pointermove", (event) => this.#move(this.#pixel(event)), own);
    this.#stage.addEventListener("pointerdown", (event) => this.#onDown(event), own);
    for (const name of ["pointerleave", "pointercancel", "blur"]) {
      this.#stage.addEventListener(name, () => this.#move(null), own);
    }
    this.#stage.addEventListener("keydown", (event) => this.#onKey(event), own);
  }

  /** @param {Place | null} place */
  #move(place) {
    if (place?.x === this.place?.x && place?.y === this.place?.y) return;
    this.place = place;
    this.#changed();
  }

  /** @param {MouseEvent} event @returns {Place | null} null beside the picture */
  #pixel(event) {
    const place = placeOn(this.#stage, event);
    if (this.#view.distanceToPicture(place) > 0) return null;
    return clampToPicture(this.#view.toPicture(place), this.#view.picture);
  }

  /** @param {PointerEvent} event */
  #onDown(event) {
    // The middle and the right button stay with the graph.
    if (event.button !== 0) return;
    event.stopPropagation();
    this.#stage.focus({ preventScroll: true });
    const pixel = this.#pixel(event);
    if (pixel) this.#choose(pixel);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) this.#step(ARROWS[event.key], event.shiftKey ? LARGE_STEP : STEP);
    else if (event.key === "Enter") this.#choose(this.place ?? this.#rest());
    else if (event.key === "Escape" && this.place) this.#move(null);
    // Taken without an effect: the host would delete the node.
    else if (event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {[number, number]} direction @param {number} share of the picture's longer side */
  #step([right, down], share) {
    const { picture } = this.#view;
    const pixels = Math.max(1, share * Math.max(picture.width, picture.height));
    const { x, y } = this.place ?? this.#rest();
    this.#move(clampToPicture({ x: x + right * pixels, y: y + down * pixels }, picture));
  }
}
