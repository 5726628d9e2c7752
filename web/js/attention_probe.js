/** Adds the panel to the AttentionProbe node. */
import { registerPanel } from "./points/panel.js";
import { AttentionProbeElement } from "./probe/element.js";

registerPanel({
  name: "RefAttention.AttentionProbe",
  node: "AttentionProbe",
  tag: "refattention-attention-probe",
  element: AttentionProbeElement,
  widget: ["attention_probe", "REFATTENTION_PROBE"],
  minHeight: 220,
  newWidth: 460,
  moreHeight: 100,
});
