/**
 * How the picture lies on the stage: fitted with a margin, zoomed and moved. Knows nothing of the browser.
 *
 * @typedef {{ x: number, y: number }} Place
 * @typedef {import("./coordinates.js").Size} Size
 */

/** Room around a fitted picture, in stage pixels, so that markers on its edge are whole. */
export const MARGIN = 10;
/** Most stage pixels for one pixel of the picture. */
const LARGEST_SCALE = 40;

export class View {
  /** @type {Size} */
  stage = { width: 1, height: 1 };
  /** @type {Size} */
  picture = { width: 1, height: 1 };
  /** Enlargement against the fitted picture, at least 1. */
  zoom = 1;
  /** Stage position of the picture's upper left corner. */
  #origin = { x: 0, y: 0 };

  /** Stage pixels for one pixel of the picture. */
  get scale() {
    return this.#fitScale * this.zoom;
  }

  get origin() {
    return this.#origin;
  }

  get isFitted() {
    return this.zoom === 1;
  }

  get #fitScale() {
    const fit = (/** @type {"width" | "height"} */ side) =>
      Math.max(1, this.stage[side] - 2 * MARGIN) / Math.max(1, this.picture[side]);
    return Math.min(fit("width"), fit("height"), LARGEST_SCALE);
  }

  /** @param {Size} stage */
  resize(stage) {
    const middle = this.toPicture({ x: this.stage.width / 2, y: this.stage.height / 2 });
    this.stage = { width: Math.max(1, stage.width), height: Math.max(1, stage.height) };
    this.#center(middle);
  }

  /** @param {Size} picture @returns {boolean} whether it is of another size than before, and fitted therefore */
  show(picture) {
    if (picture.width === this.picture.width && picture.height === this.picture.height) return false;
    this.picture = { ...picture };
    this.fit();
    return true;
  }

  fit() {
    this.zoom = 1;
    this.#keepOnStage();
  }

  /** @param {Place} place of the picture @returns {Place} */
  toStage({ x, y }) {
    return { x: this.#origin.x + x * this.scale, y: this.#origin.y + y * this.scale };
  }

  /** @param {Place} place of the stage @returns {Place} */
  toPicture({ x, y }) {
    return { x: (x - this.#origin.x) / this.scale, y: (y - this.#origin.y) / this.scale };
  }

  /** Stage pixels from a place of the stage to the picture, 0 on it. @param {Place} place */
  distanceToPicture(place) {
    const { x, y } = this.toPicture(place);
    const off = (/** @type {number} */ value, /** @type {number} */ count) => Math.max(0, -value, value - count);
    return Math.max(off(x, this.picture.width), off(y, this.picture.height)) * this.scale;
  }

  /**
   * Enlarges around a place of the stage, which stays where it is as far as the picture's edges allow.
   *
   * @param {Place} place
   * @param {number} factor
   */
  zoomAt(place, factor) {
    const fixed = this.toPicture(place);
    const largest = Math.max(1, LARGEST_SCALE / this.#fitScale);
    this.zoom = Math.max(1, Math.min(this.zoom * factor, largest));
    this.#origin = { x: place.x - fixed.x * this.scale, y: place.y - fixed.y * this.scale };
    this.#keepOnStage();
  }

  /** @param {number} right @param {number} down stage pixels */
  pan(right, down) {
    this.#origin = { x: this.#origin.x + right, y: this.#origin.y + down };
    this.#keepOnStage();
  }

  /** Moves the picture just so far that a place of it is seen. @param {Place} place */
  reveal(place) {
    const { x, y } = this.toStage(place);
    const missing = (/** @type {number} */ value, /** @type {number} */ length) =>
      Math.max(0, 2 * MARGIN - value) + Math.min(0, length - 2 * MARGIN - value);
    this.pan(missing(x, this.stage.width), missing(y, this.stage.height));
  }

  /** @param {Place} place of the picture that comes to the middle of the stage */
  #center(place) {
    this.#origin = {
      x: this.stage.width / 2 - place.x * this.scale,
      y: this.stage.height / 2 - place.y * this.scale,
    };
    this.#keepOnStage();
  }

  #keepOnStage() {
    const keep = (/** @type {number} */ start, /** @type {number} */ room, /** @type {number} */ length) => {
      if (length <= room - 2 * MARGIN + 1e-6) return (room - length) / 2;
      return Math.max(room - MARGIN - length, Math.min(start, MARGIN));
    };
    this.#origin = {
      x: keep(this.#origin.x, this.stage.width, this.picture.width * this.scale),
      y: keep(this.#origin.y, this.stage.height, this.picture.height * this.scale),
    };
  }
}

/**
 * Index of the marker under a place of the stage: the nearest in reach, the upper one of two as near; -1 for none.
 *
 * @param {Place[]} markers stage positions, later ones above earlier ones
 * @param {Place} place
 * @param {number} reach stage pixels
 */
export function hitMarker(markers, place, reach) {
  let best = -1;
  let nearest = reach;
  markers.forEach((marker, index) => {
    const distance = Math.hypot(marker.x - place.x, marker.y - place.y);
    if (distance <= nearest) {
      best = index;
      nearest = distance;
    }
  });
  return best;
}
