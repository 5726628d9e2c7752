/** Adds the point editor to the PointMask node. */
import { app } from "../../../scripts/app.js";
import { PointEditorElement } from "./points/element.js";

const NODE = "PointMask";
const TAG = "refattention-point-editor";
const MIN_HEIGHT = 220;
/** Width of a new node, and the height that its editor gets beyond the least. */
const NEW_WIDTH = 380;
const MORE_HEIGHT = 140;

if (!customElements.get(TAG)) customElements.define(TAG, PointEditorElement);

/** @param {any} node */
function addEditor(node) {
  const element = /** @type {PointEditorElement} */ (document.createElement(TAG));
  element.node = node;
  const widget = node.addDOMWidget("point_editor", "REFATTENTION_POINTS", element, {
    // In neither the prompt nor the workflow: all there is to keep are the two texts.
    serialize: false,
    hideOnZoom: false,
    margin: 8,
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false;
  const { onExecuted } = node;
  node.onExecuted = function (/** @type {unknown} */ message) {
    onExecuted?.call(this, message);
    element.look();
  };
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NEW_WIDTH), height + MORE_HEIGHT]);
}

app.registerExtension({
  name: "RefAttention.PointEditor",
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass === NODE) addEditor(node);
  },
});
