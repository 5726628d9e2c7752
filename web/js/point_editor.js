/** Adds the point editor to the PointMask node. */
import { PointEditorElement } from "./points/element.js";
import { registerPanel } from "./points/panel.js";

registerPanel({
  name: "RefAttention.PointEditor",
  node: "PointMask",
  tag: "refattention-point-editor",
  element: PointEditorElement,
  widget: ["point_editor", "REFATTENTION_POINTS"],
  minHeight: 220,
  newWidth: 380,
  moreHeight: 140,
});
