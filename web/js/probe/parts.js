/**
 * The panel's elements, without any behaviour.
 *
 * @typedef {ReturnType<typeof buildParts>} Parts
 */

import { WORDS } from "../points/parts.js";

const styles = (/** @type {string} */ path) => `<link rel="stylesheet" href="${new URL(path, import.meta.url).href}">`;

const MARKUP = `
${styles("../points/editor.css")}${styles("./probe.css")}
<div class="stages">
  <div class="stage picture without-picture" tabindex="0" role="application" aria-label="Picture" aria-describedby="keys">
    <canvas aria-hidden="true"></canvas>
    <p class="empty"></p>
  </div>
  <div class="stage reference" role="img" aria-label="Reference with heat map">
    <canvas aria-hidden="true"></canvas>
    <p class="empty"></p>
  </div>
</div>
<p class="keys" id="keys">
  Arrow keys move the probe by one cell, with Shift by four. Enter chooses its place as the spot, Escape goes back to the
  chosen spot.
</p>
${WORDS}`;

/** @param {HTMLElement} host gets a shadow root, so that styles of other packs do not reach the panel */
export function buildParts(host) {
  const root = host.attachShadow({ mode: "open" });
  root.innerHTML = MARKUP;
  const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (root.querySelector(selector));
  const stage = (/** @type {string} */ name) => ({
    stage: find(`.${name}`),
    canvas: /** @type {HTMLCanvasElement} */ (find(`.${name} canvas`)),
    empty: find(`.${name} .empty`),
  });
  return {
    picture: stage("picture"),
    reference: stage("reference"),
    status: find(".status"),
    where: find(".where"),
    note: find(".note"),
  };
}
