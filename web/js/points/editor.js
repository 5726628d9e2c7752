/**
 * The points being edited: reads and writes the texts of the two inputs, knows the selection and the history. Knows
 * nothing of the browser; what it has to tell goes to `say`.
 *
 * @typedef {import("./coordinates.js").Sign} Sign
 * @typedef {import("./coordinates.js").Point} Point
 * @typedef {import("./coordinates.js").Size} Size
 * @typedef {import("./coordinates.js").Texts} Texts
 * @typedef {{ sign: Sign, index: number }} Entry
 * @typedef {{ x: number, y: number }} Place
 * @typedef {object} Store where the texts are kept
 * @property {(sign: Sign) => { text: string, linked: boolean }} read
 * @property {(sign: Sign, text: string) => void} write
 * @property {(soon: boolean) => void} record tells the graph's undo that a change is complete, or soon will be
 */
import { clampToPicture, formatPoints, History, isInside, MOST_POINTS, parsePoints, SIGNS } from "./coordinates.js";

export class Editor {
  /** @type {Texts} */
  #texts = { positive: "", negative: "" };
  #history = new History();
  /** @type {Store} */
  #store;
  /** @type {Record<Sign, Point[]>} */
  points = { positive: [], negative: [] };
  /** Why the points of a sign cannot be changed here, empty if they can. @type {Record<Sign, string>} */
  locks = { positive: "", negative: "" };
  /** @type {Entry | null} */
  selected = null;
  /** Sign of the next point. @type {Sign} */
  sign = "positive";
  /** Size of the picture in pixels, null as long as there is none. @type {Size | null} */
  size = null;
  /** @type {(message: string) => void} */
  say = () => {};

  /** @param {Store} store */
  constructor(store) {
    this.#store = store;
  }

  /** All points in the order in which Tab visits them. @returns {Entry[]} */
  get entries() {
    return SIGNS.flatMap((sign) => this.points[sign].map((_, index) => ({ sign, index })));
  }

  get texts() {
    return { ...this.#texts };
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  get canRedo() {
    return this.#history.canRedo;
  }

  /** @param {Entry} entry */
  point({ sign, index }) {
    return this.points[sign][index];
  }

  /** @param {Entry} entry */
  isSelected({ sign, index }) {
    return this.selected?.sign === sign && this.selected.index === index;
  }

  /** Points that the node would refuse for being outside of the picture. */
  get outside() {
    const { size } = this;
    return size ? this.entries.filter((entry) => !isInside(this.point(entry), size)) : [];
  }

  /** Reads the texts again. @returns {boolean} whether anything changed */
  refresh() {
    let changed = false;
    for (const sign of SIGNS) {
      const { text, linked } = this.#store.read(sign);
      const { points, problem } = parsePoints(text);
      const lock = linked ? "comes from a link" : problem;
      if (text !== this.#texts[sign]) {
        // Somebody else wrote it: the graph's undo, a paste, the text field.
        this.#texts[sign] = text;
        this.points[sign] = points;
        this.#history.clear();
        changed = true;
      }
      changed ||= lock !== this.locks[sign];
      this.locks[sign] = lock;
    }
    if (this.selected && !this.point(this.selected)) this.selected = null;
    return changed;
  }

  /** @param {Sign} sign @returns {boolean} whether points of the sign can be changed; says why if not */
  canChange(sign) {
    if (this.locks[sign]) this.say(`${sign}_coords ${this.locks[sign]}, so it cannot be changed here.`);
    else if (!this.size) this.say("There is no picture yet to place points on.");
    return !this.locks[sign] && this.size !== null;
  }

  /**
   * Adds a point, or selects the one that is on the very pixel. It is not written before `commit`.
   *
   * @param {Sign} sign
   * @param {Place} place in pixels of the picture
   * @returns {boolean} whether there is a new point, which is selected then
   */
  add(sign, place) {
    if (!this.canChange(sign) || !this.size) return false;
    const pixel = clampToPicture(place, this.size);
    const same = this.entries.find((entry) => this.point(entry).x === pixel.x && this.point(entry).y === pixel.y);
    if (same) {
      this.selected = same;
      this.say("There is a point on this pixel already.");
      return false;
    }
    if (this.points[sign].length >= MOST_POINTS) {
      this.say(`The node takes at most ${MOST_POINTS} points.`);
      return false;
    }
    this.points[sign] = [...this.points[sign], pixel];
    this.selected = { sign, index: this.points[sign].length - 1 };
    return true;
  }

  /**
   * Moves the selected point, without writing it before `commit`.
   *
   * @param {Place} place in pixels of the picture
   */
  moveSelected(place) {
    if (!this.selected || !this.size) return;
    const { sign, index } = this.selected;
    const moved = { ...this.point(this.selected), ...clampToPicture(place, this.size) };
    this.points[sign] = this.points[sign].with(index, moved);
  }

  /** @param {Entry} entry */
  remove(entry) {
    if (!this.canChange(entry.sign)) return;
    const name = this.nameOf(entry);
    this.points[entry.sign] = this.points[entry.sign].toSpliced(entry.index, 1);
    this.selected = null;
    this.commit();
    this.say(`${name} removed.`);
  }

  /** Removes all points that can be changed. */
  clear() {
    const signs = SIGNS.filter((sign) => this.points[sign].length && this.canChange(sign));
    if (!signs.length) return;
    for (const sign of signs) this.points[sign] = [];
    this.selected = null;
    this.commit();
    this.say("Points removed. Undo brings them back.");
  }

  /**
   * Writes the points and remembers what was before.
   *
   * @param {string} tag see `History.push`
   */
  commit(tag = "") {
    const before = this.texts;
    const changed = SIGNS.filter((sign) => !this.locks[sign] && this.#write(sign, formatPoints(this.points[sign])));
    if (!changed.length) return;
    this.#history.push(before, tag);
    this.#store.record(tag !== "");
  }

  /** Drops what was added or moved but not written. */
  revert() {
    for (const sign of SIGNS) this.points[sign] = parsePoints(this.#texts[sign]).points;
    if (this.selected && !this.point(this.selected)) this.selected = null;
  }

  undo() {
    this.#restore(this.#history.undo(this.texts), "Undone.", "Nothing to undo.");
  }

  redo() {
    this.#restore(this.#history.redo(this.texts), "Done again.", "Nothing to redo.");
  }

  /** @param {Entry} entry */
  nameOf({ sign, index }) {
    return `${sign === "positive" ? "Positive" : "Negative"} point ${index + 1}`;
  }

  /** Says which point is selected and where it is. */
  describeSelected() {
    if (!this.selected) return;
    const { x, y } = this.point(this.selected);
    this.say(`${this.nameOf(this.selected)} at ${x}, ${y}.`);
  }

  /** @param {Texts | undefined} texts @param {string} done @param {string} nothing */
  #restore(texts, done, nothing) {
    this.selected = null;
    if (!texts) {
      this.say(nothing);
      return;
    }
    for (const sign of SIGNS) {
      if (this.locks[sign]) continue;
      this.#write(sign, texts[sign]);
      this.points[sign] = parsePoints(texts[sign]).points;
    }
    this.#store.record(false);
    this.say(done);
  }

  /** @param {Sign} sign @param {string} text @returns {boolean} whether it differs from what is there */
  #write(sign, text) {
    const same = formatPoints(parsePoints(this.#texts[sign]).points) === text || this.#texts[sign] === text;
    if (same) return false;
    this.#texts[sign] = text;
    this.#store.write(sign, text);
    return true;
  }
}
