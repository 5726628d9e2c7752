/**
 * What the panel shows: the two connected pictures, and the mask and the maps of the last run.
 *
 * @typedef {import("../points/coordinates.js").Size} Size
 * @typedef {import("../points/host.js").HostFile} HostFile
 * @typedef {import("../points/layers.js").Layer} Layer
 * @typedef {import("../points/layers.js").MaskLayer} MaskLayer
 * @typedef {import("./maps.js").Layout & { picture: HostFile, reference: HostFile, maps: HostFile, mask?: HostFile,
 *   size: Size, reference_size: Size, shown?: string }} Run what the node tells after it ran; `shown` is added here
 */
import { connectedPicture, lastRun } from "../points/host.js";
import { maskLayer, newCanvas, pictureLayer } from "../points/layers.js";
import { Loads } from "../points/loads.js";
import { Maps } from "./maps.js";

export class Scenery {
  /** @type {Layer | null} */
  picture = null;
  /** @type {Layer | null} */
  reference = null;
  /** The spot, if it is an area. @type {MaskLayer | null} */
  mask = null;
  /** @type {Maps | null} */
  maps = null;
  /** Size that the coordinates refer to. @type {Size | null} */
  size = null;
  /** @type {Size | null} */
  referenceSize = null;
  /** Whether other pictures are connected than those of the last run. */
  outdated = false;
  /** Grows with everything that is loaded. */
  version = 0;
  /** @type {Run | null} */
  #run = null;
  #runs = 0;
  #loads;

  /** @param {() => void} changed called when something has been loaded */
  constructor(changed) {
    this.#loads = new Loads((part, layer) => {
      Object.assign(this, { [part]: layer });
      this.version += 1;
      changed();
    });
  }

  /** Looks at the node and loads what is new. @param {any} node */
  look(node) {
    /** @type {Run | null} */
    const run = lastRun(node, "refattention_probe");
    if (run !== this.#run) this.#runs += 1;
    this.#run = run;
    const [picture, reference] = ["image", "reference_image"].map((name) => connectedPicture(node, name));
    const source = `${picture.key} ${reference.key}`;
    // Noted on the run itself, because the host keeps that when the graph's undo makes the node anew.
    if (run) run.shown ??= source;
    const current = run?.shown === source ? run : null;
    this.outdated = run !== null && current === null;
    this.#loadPicture("picture", picture, current?.picture);
    this.#loadPicture("reference", reference, current?.reference);
    const version = `${this.#runs}`;
    this.#loads.load("mask", current?.mask, version, maskLayer);
    this.#loads.load("maps", current?.maps, version, (image) => current && readMaps(image, current));
    this.size = this.picture && (current?.size ?? sizeOf(this.picture));
    this.referenceSize = this.reference && (current?.reference_size ?? sizeOf(this.reference));
  }

  /**
   * @param {"picture" | "reference"} part
   * @param {{ file: HostFile | null, exact: boolean }} connected
   * @param {HostFile | undefined} ran the file of the last run
   */
  #loadPicture(part, { file, exact }, ran) {
    const chosen = exact || !ran ? file : ran;
    this.#loads.load(part, chosen, chosen === file ? "" : `${this.#runs}`, pictureLayer);
  }
}

/** @param {Layer} layer @returns {Size} */
function sizeOf({ width, height }) {
  return { width, height };
}

/** @param {HTMLImageElement} image @param {Run} run */
function readMaps(image, run) {
  const { context } = newCanvas(image.naturalWidth, image.naturalHeight);
  context.drawImage(image, 0, 0);
  return new Maps(context.getImageData(0, 0, image.naturalWidth, image.naturalHeight), run);
}
