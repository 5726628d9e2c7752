/**
 * What the last run saw: for each cell of the picture a map over the reference. Knows nothing of the browser.
 *
 * @typedef {import("../points/coordinates.js").Size} Size
 * @typedef {{ x: number, y: number }} Place
 * @typedef {{ grid: Size, reference_grid: Size, most: number }} Layout `most` is the attention at full brightness
 * @typedef {{ width: number, height: number, data: ArrayLike<number> }} Pixels four bytes for each pixel
 */

/** Viridis in even steps, which also the colour-blind and grey prints keep in order. */
const COLORS = [
  [68, 1, 84], [72, 40, 120], [59, 82, 139], [44, 114, 142], [33, 145, 140],
  [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37],
];
/** Steps of brightness by which a map must vary to show more than rounding. */
const FLAT = 2;

export class Maps {
  #pixels;
  #layout;

  /** @param {Pixels} pixels a tile for each cell and below them one for the spot @param {Layout} layout */
  constructor(pixels, layout) {
    this.#pixels = pixels;
    this.#layout = layout;
  }

  /** Size of one map. */
  get size() {
    return this.#layout.reference_grid;
  }

  /**
   * The cell that a place of the picture lies in.
   *
   * @param {Place} place
   * @param {Size} picture
   * @returns {Place}
   */
  cellAt({ x, y }, picture) {
    const { grid } = this.#layout;
    const cell = (/** @type {number} */ value, /** @type {"width" | "height"} */ side) =>
      Math.max(0, Math.min(Math.floor((value / picture[side]) * grid[side]), grid[side] - 1));
    return { x: cell(x, "width"), y: cell(y, "height") };
  }

  /** The attention of the spot of the last run. */
  get spot() {
    return this.attention([{ x: 0, y: this.#layout.grid.height }]);
  }

  /**
   * Mean attention of some cells, 1 where it is what even attention would be.
   *
   * @param {Place[]} cells at least one
   * @returns {Float32Array} row by row
   */
  attention(cells) {
    const { width, height } = this.size;
    const { data, width: across } = this.#pixels;
    const step = this.#step;
    const mean = new Float32Array(width * height);
    for (const cell of cells) {
      for (let index = 0; index < mean.length; index += 1) {
        const row = cell.y * height + Math.floor(index / width);
        const column = cell.x * width + (index % width);
        mean[index] += Math.expm1(data[4 * (row * across + column)] * step) / cells.length;
      }
    }
    return mean;
  }

  /**
   * Attention as heat, stretched to 0-1 on a logarithmic scale; a flat map is 0.
   *
   * @param {Float32Array} attention
   */
  heat(attention) {
    const brightness = attention.map(Math.log1p);
    const low = Math.min(...brightness);
    const range = Math.max(...brightness) - low;
    return brightness.map((value) => (range < FLAT * this.#step ? 0 : (value - low) / range));
  }

  /**
   * Where a map is highest.
   *
   * @param {Float32Array} attention
   * @param {Size} reference
   * @returns {{ times: number, place: Place }} times even attention, and the middle of the cell
   */
  peak(attention, reference) {
    const { width, height } = this.size;
    const times = Math.max(...attention);
    const index = attention.indexOf(times);
    const x = (((index % width) + 0.5) / width) * reference.width;
    const y = ((Math.floor(index / width) + 0.5) / height) * reference.height;
    return { times, place: { x, y } };
  }

  /** What one step of brightness is on the logarithmic scale. */
  get #step() {
    return Math.log1p(this.#layout.most) / 255;
  }
}

/** @param {Float32Array} heat in 0-1 @returns {Uint8ClampedArray<ArrayBuffer>} four bytes for each value */
export function colored(heat) {
  const bytes = new Uint8ClampedArray(4 * heat.length);
  heat.forEach((value, index) => {
    const place = value * (COLORS.length - 1);
    const from = Math.min(Math.floor(place), COLORS.length - 2);
    const share = place - from;
    const color = COLORS[from].map((low, channel) => low + (COLORS[from + 1][channel] - low) * share);
    bytes.set([...color, 255], 4 * index);
  });
  return bytes;
}
