/** Adds an element to the nodes of one type. */
import { app } from "../../../../scripts/app.js";

/**
 * @typedef {object} Panel
 * @property {string} name of the extension
 * @property {string} node type of the nodes
 * @property {string} tag of the element
 * @property {any} element its class, a `LiveElement`
 * @property {[string, string]} widget name and type of the widget that holds it
 * @property {number} minHeight
 * @property {number} newWidth width of a new node
 * @property {number} moreHeight what the element of a new node gets beyond the least
 */

/** @param {Panel} panel */
export function registerPanel(panel) {
  if (!customElements.get(panel.tag)) customElements.define(panel.tag, panel.element);
  app.registerExtension({
    name: panel.name,
    nodeCreated(/** @type {any} */ node) {
      if (node.comfyClass === panel.node) addElement(node, panel);
    },
  });
}

/** @param {any} node @param {Panel} panel */
function addElement(node, { tag, widget: [name, type], minHeight, newWidth, moreHeight }) {
  const element = /** @type {any} */ (document.createElement(tag));
  element.node = node;
  const widget = node.addDOMWidget(name, type, element, {
    // In neither the prompt nor the workflow: all there is to keep are the node's own texts.
    serialize: false,
    hideOnZoom: false,
    margin: 8,
    getMinHeight: () => minHeight,
  });
  widget.serialize = false;
  const { onExecuted } = node;
  node.onExecuted = function (/** @type {unknown} */ message) {
    onExecuted?.call(this, message);
    element.look();
  };
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, newWidth), height + moreHeight]);
}
