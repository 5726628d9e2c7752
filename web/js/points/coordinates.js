/**
 * Points as the text the node takes, and the history of their changes. Knows nothing of the browser or the host.
 *
 * @typedef {"positive" | "negative"} Sign
 * @typedef {Record<string, unknown> & { x: number, y: number }} Point pixels of the picture, x to the right, y down
 * @typedef {{ points: Point[], problem: string }} Parsed `problem` says why the points can be shown but not changed
 * @typedef {Record<Sign, string>} Texts the text of both inputs
 * @typedef {{ width: number, height: number }} Size
 */

/** @type {Sign[]} */
export const SIGNS = ["positive", "negative"];

/** The most points the node takes in one list. */
export const MOST_POINTS = 1000;

const isPoint = (/** @type {any} */ item) =>
  item !== null && typeof item === "object" && Number.isFinite(item.x) && Number.isFinite(item.y);

/** Whether the numbers cannot be pixels; the node refuses them. @param {Point[]} points */
function areShares(points) {
  const numbers = points.flatMap(({ x, y }) => [x, y]);
  return numbers.every((each) => each >= 0 && each <= 1) && !numbers.every(Number.isInteger);
}

/**
 * Reads the text of an input. Text that is not one plain list of points gives what can be shown of it and a problem,
 * so that nobody overwrites what was not understood.
 *
 * @param {unknown} text
 * @returns {Parsed}
 */
export function parsePoints(text) {
  if (typeof text !== "string") return { points: [], problem: "is not text" };
  if (!text.trim()) return { points: [], problem: "" };
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return { points: [], problem: "is not valid JSON" };
  }
  if (!Array.isArray(value)) return { points: [], problem: "is not a list of points" };
  if (value.length && value.every(Array.isArray)) {
    const problem = `holds one list for each of ${value.length} frames, the first is shown`;
    return { points: value[0].filter(isPoint), problem };
  }
  const points = value.filter(isPoint);
  if (areShares(points)) return { points, problem: "holds shares of the picture from 0 to 1 in place of pixels" };
  return { points, problem: points.length < value.length ? "holds something that is not a point" : "" };
}

/**
 * The text for a list of points, as Python's json writes it. Further keys of a point are kept.
 *
 * @param {Point[]} points
 */
export function formatPoints(points) {
  const member = (/** @type {[string, unknown]} */ [key, value]) => `${JSON.stringify(key)}: ${JSON.stringify(value)}`;
  const items = points.map((point) => `{${Object.entries(point).map(member).join(", ")}}`);
  return `[${items.join(", ")}]`;
}

/**
 * The nearest pixel of a picture.
 *
 * @param {{ x: number, y: number }} place
 * @param {Size} size
 */
export function clampToPicture({ x, y }, { width, height }) {
  const clamp = (/** @type {number} */ value, /** @type {number} */ count) =>
    Math.max(0, Math.min(Math.floor(value), count - 1));
  return { x: clamp(x, width), y: clamp(y, height) };
}

/**
 * Whether the node would accept the point for a picture of this size.
 *
 * @param {Point} point
 * @param {Size} size
 */
export function isInside({ x, y }, { width, height }) {
  return x >= 0 && y >= 0 && x < width && y < height;
}

/** Undo and redo of the texts. Changes with one tag that follow each other closely are one step. */
export class History {
  static LIMIT = 200;
  static PAUSE_MS = 800;

  /** @type {Texts[]} */
  #past = [];
  /** @type {Texts[]} */
  #future = [];
  #tag = "";
  #time = -Infinity;

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /**
   * Remembers the texts as they were before a change.
   *
   * @param {Texts} before
   * @param {string} tag what the change belongs to, empty for a step of its own
   * @param {number} now milliseconds
   */
  push(before, tag = "", now = Date.now()) {
    const continues = tag !== "" && tag === this.#tag && now - this.#time < History.PAUSE_MS;
    this.#tag = tag;
    this.#time = now;
    this.#future = [];
    if (continues) return;
    this.#past.push({ ...before });
    if (this.#past.length > History.LIMIT) this.#past.shift();
  }

  /** @param {Texts} current @returns {Texts | undefined} */
  undo(current) {
    return this.#step(this.#past, this.#future, current);
  }

  /** @param {Texts} current @returns {Texts | undefined} */
  redo(current) {
    return this.#step(this.#future, this.#past, current);
  }

  /** Forgets everything, for when someone else changed the texts. */
  clear() {
    this.#past = [];
    this.#future = [];
    this.#tag = "";
  }

  /** @param {Texts[]} from @param {Texts[]} to @param {Texts} current */
  #step(from, to, current) {
    const texts = from.pop();
    if (texts) to.push({ ...current });
    this.#tag = "";
    return texts;
  }
}
