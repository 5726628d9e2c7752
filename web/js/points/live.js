/**
 * An element that shows a node's state. It lives while it is in the document: only then it listens, looks after the
 * node and draws.
 *
 * @typedef {import("./view.js").Place} Place
 */
import { successorOf } from "./host.js";

/** How often the node is looked at: its texts, the connected pictures, the last run. */
const LOOK_MS = 200;
const LARGEST_RATIO = 4;

export class LiveElement extends HTMLElement {
  /** The graph's node. @type {any} */
  node = null;
  /** @type {AbortController | null} */
  #life = null;
  #frame = 0;

  /** What is drawn on. @returns {HTMLElement[]} */
  get stages() {
    return [];
  }

  /** Whether the node must not be looked at now. */
  get isBusy() {
    return false;
  }

  /** Listens until the signal. @param {AbortSignal} _signal */
  listen(_signal) {}

  /** Takes over the sizes of the stages. */
  resize() {}

  /** Takes over what changed in the node. */
  refresh() {}

  draw() {}

  connectedCallback() {
    const life = new AbortController();
    this.#life = life;
    this.listen(life.signal);
    const observer = new ResizeObserver(() => this.resize());
    for (const stage of this.stages) observer.observe(stage);
    const timer = setInterval(() => this.look(), LOOK_MS);
    life.signal.addEventListener("abort", () => {
      observer.disconnect();
      clearInterval(timer);
      cancelAnimationFrame(this.#frame);
      this.#frame = 0;
    });
    this.resize();
    this.look();
  }

  disconnectedCallback() {
    this.#life?.abort();
    this.#life = null;
  }

  /** Looks at the node, if there is one to be looked at. */
  look() {
    if (this.node && this.#life && !this.isBusy && !this.#giveWay()) this.refresh();
  }

  requestDraw() {
    if (this.#frame || !this.#life) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  /** Lets the element of the node that replaced this one take the place. @returns {boolean} whether there is one */
  #giveWay() {
    const widgets = successorOf(this.node)?.widgets ?? [];
    const type = /** @type {any} */ (this.constructor);
    const other = widgets.find((/** @type {any} */ widget) => widget.element instanceof type)?.element;
    if (other) this.replaceWith(other);
    return other !== undefined;
  }
}

/** Device pixels for one pixel of a stage, which the graph may have enlarged. @param {HTMLElement} stage */
export function ratioOf(stage) {
  const enlarged = stage.clientWidth ? stage.getBoundingClientRect().width / stage.offsetWidth : 1;
  // In steps, so that zooming the graph does not draw everything anew in every frame.
  const ratio = Math.ceil(enlarged * window.devicePixelRatio * 2 - 0.01) / 2;
  return Math.max(0.5, Math.min(ratio, LARGEST_RATIO));
}

/**
 * The place of an event on a stage, whatever the graph's zoom.
 *
 * @param {HTMLElement} stage
 * @param {MouseEvent} event
 * @returns {Place}
 */
export function placeOn(stage, event) {
  const { left, top, width } = stage.getBoundingClientRect();
  const enlarged = width / stage.offsetWidth;
  return {
    x: (event.clientX - left) / enlarged - stage.clientLeft,
    y: (event.clientY - top) / enlarged - stage.clientTop,
  };
}

/**
 * Puts a backdrop on a canvas, on which is drawn in pixels of the stage from then on.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLCanvasElement} backdrop
 * @param {{ width: number, height: number }} stage
 * @returns {CanvasRenderingContext2D}
 */
export function startDrawing(canvas, backdrop, stage) {
  if (canvas.width !== backdrop.width) canvas.width = backdrop.width;
  if (canvas.height !== backdrop.height) canvas.height = backdrop.height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(backdrop, 0, 0);
  context.scale(canvas.width / stage.width, canvas.height / stage.height);
  return context;
}

/** @param {HTMLElement} element @param {string} text a live region speaks whenever it is set */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
