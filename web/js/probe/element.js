/**
 * The panel as an element: the picture that is looked from beside the reference that is looked at.
 *
 * @typedef {import("../points/coordinates.js").Point} Point
 * @typedef {import("../points/draw.js").Scene} Scene
 * @typedef {import("../points/layers.js").Layer} Layer
 * @typedef {import("../points/view.js").Place} Place
 */
import { clampToPicture, formatPoints, isInside, parsePoints } from "../points/coordinates.js";
import { Backdrop, drawCursor, drawMarker } from "../points/draw.js";
import { recordChange, textSlot } from "../points/host.js";
import { newCanvas } from "../points/layers.js";
import { LiveElement, ratioOf, setText, startDrawing } from "../points/live.js";
import { View } from "../points/view.js";
import { colored } from "./maps.js";
import { buildParts } from "./parts.js";
import { Pointer } from "./pointer.js";
import { Scenery } from "./scenery.js";

/** Pixels for one of a map, so that it is drawn smooth. */
const SMOOTH = 8;
const NO_PICTURE = "Connect a picture to image.";
const NO_REFERENCE = "Connect a picture to reference_image.";
const UNFILLED = "Queue once to fill.";
const OUTDATED = "Other pictures are connected now: queue once to fill.";
const HINT = "Move the pointer over the picture: the heat map shows where the model looks from there. A click chooses the "
  + "spot of the outputs.";

export class AttentionProbeElement extends LiveElement {
  #parts = buildParts(this);
  #views = { picture: new View(), reference: new View() };
  #backdrops = { picture: new Backdrop(), reference: new Backdrop() };
  #scenery = new Scenery(() => this.look());
  #text = { points: /** @type {Point[]} */ ([]), lock: "" };
  #pointer = new Pointer(
    this.#parts.picture.stage,
    this.#views.picture,
    () => this.#rest[0],
    () => this.requestDraw(),
    (place) => this.#choose(place),
  );
  /** What the reference shows, made anew only when it is another map. */
  #heat = { key: "", layer: /** @type {Layer | null} */ (null), words: "", peak: /** @type {Place | null} */ (null) };
  /** What was drawn last, as far as it comes from outside. @type {unknown[]} */
  #seen = [];

  get stages() {
    return [this.#parts.picture.stage, this.#parts.reference.stage];
  }

  /** @param {AbortSignal} signal */
  listen(signal) {
    this.#pointer.listen(signal);
    this.#parts.picture.stage.addEventListener("focus", () => this.requestDraw(), { signal });
  }

  resize() {
    for (const name of /** @type {const} */ (["picture", "reference"])) {
      const { clientWidth: width, clientHeight: height } = this.#parts[name].stage;
      this.#views[name].resize({ width, height });
    }
    this.requestDraw();
  }

  refresh() {
    const { text, linked } = textSlot(this.node, "positive");
    const { points, problem } = parsePoints(text);
    this.#text = { points, lock: linked ? "comes from a link" : problem };
    this.#scenery.look(this.node);
    const { size, referenceSize, outdated, version } = this.#scenery;
    if (size) this.#views.picture.show(size);
    if (referenceSize) this.#views.reference.show(referenceSize);
    const ratio = ratioOf(this.#parts.picture.stage);
    const seen = [text, linked, outdated, version, size?.width, size?.height, ratio];
    if (seen.some((value, index) => value !== this.#seen[index])) this.requestDraw();
    this.#seen = seen;
  }

  /** The chosen points as far as they are on the picture; without any, its middle as the node takes it. */
  get #rest() {
    const size = this.#scenery.size ?? { width: 1, height: 1 };
    const inside = this.#text.points.filter((point) => isInside(point, size));
    return inside.length ? inside : [clampToPicture({ x: size.width / 2, y: size.height / 2 }, size)];
  }

  /** Makes a pixel the spot. @param {Place} place */
  #choose(place) {
    if (this.#text.lock || !this.#scenery.size) return;
    textSlot(this.node, "positive").write(formatPoints([place]));
    recordChange();
    this.look();
  }

  draw() {
    this.#update();
    this.#drawPicture();
    this.#drawReference();
    this.#describe();
  }

  /** Looks up the map of the probe's place, unless it is shown already. */
  #update() {
    const { maps, mask, size, referenceSize, version } = this.#scenery;
    const { place } = this.#pointer;
    const cells = maps && size ? (place ? [place] : this.#rest).map((each) => maps.cellAt(each, size)) : [];
    const ofMask = mask !== null && place === null;
    const key = `${version} ${ofMask} ${JSON.stringify(cells)}`;
    if (key === this.#heat.key) return;
    this.#heat = { key, layer: null, words: "", peak: null };
    if (!maps || !referenceSize) return;
    const attention = ofMask ? maps.spot : maps.attention(cells);
    const { times, place: peak } = maps.peak(attention, referenceSize);
    const { x, y } = clampToPicture(peak, referenceSize);
    const words = `Looks most at ${x}, ${y}: ${times.toFixed(times < 10 ? 1 : 0)} times even attention.`;
    this.#heat = { key, layer: heatLayer(maps.heat(attention), maps.size), words, peak };
  }

  #drawPicture() {
    const { picture, mask, size } = this.#scenery;
    const context = this.#start("picture", { picture, mask, heat: null, mode: mask ? "mask" : "picture" });
    if (!size) return;
    const view = this.#views.picture;
    const toStage = (/** @type {Place} */ { x, y }) => view.toStage({ x: x + 0.5, y: y + 0.5 });
    // With a mask, the points are not what the spot is.
    const points = mask ? [] : this.#rest;
    points.forEach((point, index) => {
      const label = points.length > 1 ? `${index + 1}` : "";
      drawMarker(context, {
        place: toStage(point), sign: "positive", label, selected: false, hovered: false, inside: true,
      });
    });
    if (this.#pointer.place) drawCursor(context, toStage(this.#pointer.place));
  }

  #drawReference() {
    const { layer, peak } = this.#heat;
    const context = this.#start("reference", {
      picture: this.#scenery.reference, mask: null, heat: layer, mode: layer ? "heat" : "picture",
    });
    if (peak) drawCursor(context, this.#views.reference.toStage(peak));
  }

  /** @param {"picture" | "reference"} name @param {Scene} scene */
  #start(name, scene) {
    const { canvas, stage } = this.#parts[name];
    const view = this.#views[name];
    return startDrawing(canvas, this.#backdrops[name].render(scene, view, ratioOf(stage)), view.stage);
  }

  /** Brings the texts up to date. */
  #describe() {
    const { picture, reference, status, where, note } = this.#parts;
    const { size, referenceSize, maps, outdated } = this.#scenery;
    setText(picture.empty, size ? "" : NO_PICTURE);
    setText(reference.empty, referenceSize ? "" : NO_REFERENCE);
    picture.stage.classList.toggle("without-picture", size === null);
    const problem = this.#problem();
    status.classList.toggle("problem", problem !== "");
    setText(status, problem || (maps ? this.#heat.words : outdated ? OUTDATED : UNFILLED));
    const place = this.#pointer.place ?? this.#rest[0];
    setText(where, size ? `${place.x}, ${place.y}` : "");
    setText(note, size ? HINT : "");
  }

  /** Why the spot cannot be chosen here, or the node will refuse it. */
  #problem() {
    const { size } = this.#scenery;
    const { points, lock } = this.#text;
    if (lock) return `Read only: positive_coords ${lock}.`;
    if (!size || points.every((point) => isInside(point, size))) return "";
    return `Points lie outside the picture of ${size.width} × ${size.height}: click to choose another spot.`;
  }
}

/**
 * @param {Float32Array} heat
 * @param {{ width: number, height: number }} size
 * @returns {Layer}
 */
function heatLayer(heat, { width, height }) {
  const small = newCanvas(width, height);
  small.context.putImageData(new ImageData(colored(heat), width, height), 0, 0);
  const large = newCanvas(width * SMOOTH, height * SMOOTH);
  large.context.drawImage(small.canvas, 0, 0, width * SMOOTH, height * SMOOTH);
  return { width: width * SMOOTH, height: height * SMOOTH, levels: [large.canvas] };
}
