/**
 * What lies behind the points: the connected picture, the mask and the heat map of the last run.
 *
 * @typedef {import("./coordinates.js").Size} Size
 * @typedef {import("./coordinates.js").Texts} Texts
 * @typedef {import("./draw.js").Scene} Scene
 * @typedef {import("./host.js").Run} Run
 */
import { connectedPicture, lastRun } from "./host.js";
import { maskLayer, pictureLayer } from "./layers.js";
import { Loads } from "./loads.js";

export class Scenery {
  /** @type {Scene} */
  scene = { picture: null, mask: null, heat: null, mode: "mask" };
  /** Size of the picture that the coordinates refer to. @type {Size | null} */
  size = null;
  /** What the last run had to say, or why it is out of date. */
  note = "";
  /** Whether the picture's file cannot be read. */
  failed = false;
  /** @type {Run | null} */
  #run = null;
  #runs = 0;
  #loads;

  /** @param {() => void} changed called when a layer has been loaded */
  constructor(changed) {
    this.#loads = new Loads((part, layer, failed) => {
      this.scene = { ...this.scene, [part]: layer };
      if (part === "picture") this.failed = failed;
      changed();
    });
  }

  /** Looks at the node and loads what is new. @param {any} node @param {Texts} texts the points as they are now */
  look(node, texts) {
    /** @type {Run | null} */
    const run = lastRun(node, "refattention_points");
    if (run !== this.#run) this.#runs += 1;
    this.#run = run;
    const { file, exact, key } = connectedPicture(node);
    const points = JSON.stringify(texts);
    // Noted on the run itself, because the host keeps that when the graph's undo makes the node anew.
    if (run) run.shown ??= { source: key, points };
    const current = run?.shown?.source === key ? run : null;
    const picture = exact || !current ? file : current.picture;
    this.#loads.load("picture", picture, picture === file ? "" : `${this.#runs}`, pictureLayer);
    this.#loads.load("mask", current?.mask, `${this.#runs}`, maskLayer);
    this.#loads.load("heat", current?.similarity, `${this.#runs}`, pictureLayer);
    this.size = this.#size(current);
    const moved = current !== null && current.shown?.points !== points;
    this.note = moved ? "The points changed since this mask was made: run again." : (current?.note ?? "");
  }

  /** @param {import("./draw.js").Mode} mode */
  show(mode) {
    this.scene = { ...this.scene, mode };
  }

  /** @param {Run | null} run @returns {Size | null} */
  #size(run) {
    const { picture } = this.scene;
    if (!picture) return null;
    return run ? { width: run.width, height: run.height } : { width: picture.width, height: picture.height };
  }
}
