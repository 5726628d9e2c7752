/**
 * Draws the stage: the picture with mask or heat map, kept until the view changes, and the markers on top of it.
 *
 * @typedef {import("./layers.js").Layer} Layer
 * @typedef {import("./layers.js").MaskLayer} MaskLayer
 * @typedef {import("./view.js").View} View
 * @typedef {import("./view.js").Place} Place
 * @typedef {import("./coordinates.js").Sign} Sign
 * @typedef {"picture" | "mask" | "heat"} Mode
 * @typedef {{ picture: Layer | null, mask: MaskLayer | null, heat: Layer | null, mode: Mode }} Scene
 * @typedef {{ place: Place, sign: Sign, label: string, selected: boolean, hovered: boolean, inside: boolean }} Marker
 */
import { newCanvas } from "./layers.js";

/** Blue and vermillion of Okabe and Ito's palette, which colour-blind people tell apart. */
export const COLORS = { positive: "#0072b2", negative: "#d55e00" };
/** Stage pixels from a marker's middle to its edge. */
export const MARKER_RADIUS = 8;

const LIGHT = "#ffffff";
const DARK = "rgba(0, 0, 0, 0.75)";
/** Of the mask, and of the selected point: two more of the palette. */
const OUTLINE = "#f0e442";
const SELECTED = "#56b4e9";
const SHADE = "rgba(0, 0, 0, 0.55)";
/** Device pixels for one of the picture from which on pixels are shown as squares. */
const SHARP_FROM = 4;

/** The picture and what lies over it, drawn anew only when something of it changed. */
export class Backdrop {
  #base = newCanvas(1, 1);
  #scratch = newCanvas(1, 1);
  /** @type {unknown[]} */
  #drawn = [];

  /**
   * @param {Scene} scene
   * @param {View} view
   * @param {number} ratio device pixels for one stage pixel
   * @returns {HTMLCanvasElement} of the stage's size in device pixels
   */
  render(scene, view, ratio) {
    const { origin, scale, stage } = view;
    const state = [scene.picture, scene.mask, scene.heat, scene.mode, origin.x, origin.y, scale];
    state.push(stage.width, stage.height, ratio);
    if (state.some((value, index) => value !== this.#drawn[index])) {
      this.#drawn = state;
      this.#paint(scene, view, ratio);
    }
    return this.#base.canvas;
  }

  /** @param {Scene} scene @param {View} view @param {number} ratio */
  #paint({ picture, mask, heat, mode }, view, ratio) {
    for (const { canvas } of [this.#base, this.#scratch]) {
      canvas.width = Math.round(view.stage.width * ratio);
      canvas.height = Math.round(view.stage.height * ratio);
    }
    if (!picture) return;
    const { context } = this.#base;
    drawLayer(context, picture, view, ratio);
    if (mode === "heat" && heat) {
      context.globalAlpha = 0.75;
      drawLayer(context, heat, view, ratio);
      context.globalAlpha = 1;
    }
    if (mode === "picture" || !mask) return;
    if (mode === "mask") this.#over(() => this.#shade(mask, view, ratio));
    this.#over(() => this.#outline(mask, view, ratio, 3, DARK));
    this.#over(() => this.#outline(mask, view, ratio, 1.75, OUTLINE));
  }

  /** @param {() => void} paint draws on the scratch canvas, which then comes over the base */
  #over(paint) {
    const { canvas, context } = this.#scratch;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    paint();
    this.#base.context.drawImage(canvas, 0, 0);
  }

  /** Darkens what is outside of the mask. @param {MaskLayer} mask @param {View} view @param {number} ratio */
  #shade(mask, view, ratio) {
    const { context } = this.#scratch;
    const { x, y, width, height } = pictureBox(view, ratio);
    context.fillStyle = SHADE;
    // With the half pixels at the picture's edges.
    context.fillRect(x - 1, y - 1, width + 2, height + 2);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask.soft, x, y, width, height);
  }

  /**
   * The mask moved in eight directions, without the mask itself.
   *
   * @param {MaskLayer} mask
   * @param {View} view
   * @param {number} ratio
   * @param {number} thickness stage pixels
   * @param {string} color
   */
  #outline(mask, view, ratio, thickness, color) {
    const { canvas, context } = this.#scratch;
    const { x, y, width, height } = pictureBox(view, ratio);
    for (let step = 0; step < 8; step += 1) {
      const angle = (step * Math.PI) / 4;
      const [dx, dy] = [Math.cos(angle) * thickness * ratio, Math.sin(angle) * thickness * ratio];
      context.drawImage(mask.hard, x + dx, y + dy, width, height);
    }
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask.hard, x, y, width, height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = color;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
}

/** The picture's rectangle in device pixels. @param {View} view @param {number} ratio */
function pictureBox({ origin, scale, picture }, ratio) {
  const size = scale * ratio;
  return { x: origin.x * ratio, y: origin.y * ratio, width: picture.width * size, height: picture.height * size };
}

/**
 * Draws the visible part of a layer from the smallest copy that has enough pixels.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Layer} layer stretched over the picture
 * @param {View} view
 * @param {number} ratio
 */
function drawLayer(context, layer, view, ratio) {
  const box = pictureBox(view, ratio);
  const halvings = Math.floor(Math.log2(Math.max(1, layer.width / box.width)));
  const level = layer.levels[Math.min(halvings, layer.levels.length - 1)];
  const { width, height } = sizeOf(level);
  const [left, top] = [Math.max(0, -box.x), Math.max(0, -box.y)];
  const right = Math.min(box.width, context.canvas.width - box.x);
  const bottom = Math.min(box.height, context.canvas.height - box.y);
  if (right <= left || bottom <= top) return;
  const [across, down] = [width / box.width, height / box.height];
  context.imageSmoothingEnabled = box.width / layer.width < SHARP_FROM;
  context.drawImage(
    level,
    left * across, top * down, (right - left) * across, (bottom - top) * down,
    box.x + left, box.y + top, right - left, bottom - top,
  );
}

/** @param {any} source */
function sizeOf(source) {
  return { width: source.naturalWidth ?? source.width, height: source.naturalHeight ?? source.height };
}

/**
 * A round marker with a plus for a positive point, a square one with a minus for a negative point, numbered.
 *
 * @param {CanvasRenderingContext2D} context in stage pixels
 * @param {Marker} marker
 */
export function drawMarker(context, { place, sign, label, selected, hovered, inside }) {
  const radius = MARKER_RADIUS + (selected ? 2 : 0);
  const body = (/** @type {number} */ size) => {
    context.beginPath();
    if (sign === "positive") context.arc(0, 0, size, 0, 2 * Math.PI);
    else context.roundRect(-size * 0.9, -size * 0.9, size * 1.8, size * 1.8, 2);
    context.closePath();
  };
  context.save();
  context.translate(place.x, place.y);
  if (selected || hovered) {
    body(radius + 4);
    context.fillStyle = selected ? SELECTED : "rgba(255, 255, 255, 0.45)";
    context.fill();
  }
  body(radius + 2.5);
  context.fillStyle = DARK;
  context.fill();
  body(radius + 1.5);
  context.fillStyle = LIGHT;
  context.fill();
  body(radius);
  context.fillStyle = COLORS[sign];
  context.fill();
  if (!inside) {
    context.setLineDash([3, 3]);
    context.strokeStyle = DARK;
    context.lineWidth = 2;
    body(radius + 1.5);
    context.stroke();
    context.setLineDash([]);
  }
  context.strokeStyle = LIGHT;
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(-4, 0);
  context.lineTo(4, 0);
  if (sign === "positive") {
    context.moveTo(0, -4);
    context.lineTo(0, 4);
  }
  context.stroke();
  drawLabel(context, label, radius + 5);
  context.restore();
}

/** @param {CanvasRenderingContext2D} context @param {string} label @param {number} offset */
function drawLabel(context, label, offset) {
  context.font = "600 12px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3.5;
  context.strokeStyle = "rgba(0, 0, 0, 0.85)";
  context.fillStyle = LIGHT;
  context.strokeText(label, offset, -offset + 3);
  context.fillText(label, offset, -offset + 3);
}

/** The place at which Enter adds a point. @param {CanvasRenderingContext2D} context @param {Place} place */
export function drawCursor(context, { x, y }) {
  for (const [width, color] of /** @type {[number, string][]} */ ([[4, DARK], [1.5, LIGHT]])) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 14 * dx, y + 14 * dy);
    }
    context.stroke();
  }
}
