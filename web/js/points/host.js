/**
 * What the panels need of ComfyUI's frontend: the texts of the two inputs, the picture that comes in, the last run.
 *
 * @typedef {import("./coordinates.js").Sign} Sign
 * @typedef {{ text: string, linked: boolean, write: (text: string) => void }} TextSlot
 * @typedef {{ filename: string, subfolder?: string, type: string }} HostFile
 * @typedef {{ picture: HostFile, mask: HostFile, similarity?: HostFile, width: number, height: number, note: string,
 *   shown?: { source: string, points: string } }} Run what the node tells after it ran; `shown` is added here
 */
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";

/** Nodes that give the file they are set to as it is. Others with such a setting may resize or crop it. */
const LOADERS = ["LoadImage", "LoadImageOutput"];
/** Nodes whose preview is the picture at their input, unchanged. */
const SHOWING_NODES = ["PreviewImage", "SaveImage"];
const NEVER = 2;
const BYPASS = 4;
/** A chain of links longer than this is a circle. */
const MOST_LINKS = 100;

/** @param {HostFile} file */
export function viewUrl({ filename, subfolder = "", type }) {
  // Names of temporary files come again after the host was restarted, with other pictures behind them.
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}${app.getRandParam()}`);
}

/**
 * The text of one of the node's inputs, wherever it is kept.
 *
 * @param {any} node
 * @param {Sign} sign
 * @returns {TextSlot}
 */
export function textSlot(node, sign) {
  const name = `${sign}_coords`;
  const own = node.widgets?.find((/** @type {any} */ widget) => widget.name === name);
  const slot = node.inputs?.find((/** @type {any} */ input) => (input.widget?.name ?? input.name) === name);
  if (slot?.link == null) return widgetSlot(node, own, false);
  const origin = follow(node.graph, slot.link, "STRING");
  // An input that a subgraph shows on its outside is kept there and can be changed like the node's own.
  if (origin?.promoted) return widgetSlot(origin.node, origin.promoted, origin.shared);
  const value = origin?.node.widgets?.find((/** @type {any} */ widget) => widget.name === "value");
  return widgetSlot(node, value, true);
}

/** @param {any} node @param {any} widget @param {boolean} linked @returns {TextSlot} */
function widgetSlot(node, widget, linked) {
  const write = (/** @type {string} */ text) => {
    widget.value = text;
    widget.callback?.(text, app.canvas, node);
  };
  return { text: String(widget?.value ?? ""), linked: linked || !widget, write };
}

/**
 * Tells the graph's own undo that a change is complete. It compares the graph with the state it knows, so that a
 * call without a change does nothing.
 */
export function recordChange() {
  app.canvas.emitBeforeChange();
  app.canvas.emitAfterChange();
  app.canvas.setDirty(true, true);
}

/**
 * The picture that is connected to the node, as far as it is known without a run of this node.
 *
 * @param {any} node
 * @param {string} name of the input
 * @returns {{ file: HostFile | null, exact: boolean, key: string }} `exact` if the file is the picture itself and not a
 *   preview of it; the key changes when something else is connected
 */
export function connectedPicture(node, name = "image") {
  const slot = node.inputs?.find((/** @type {any} */ input) => input.name === name);
  const origin = slot?.link == null ? null : follow(node.graph, slot.link, "IMAGE");
  if (!origin || origin.promoted) return { file: null, exact: false, key: "" };
  const widget = fileWidget(origin.node);
  const chosen = widget && fileOf(origin.node, widget);
  const key = JSON.stringify(chosen);
  if (LOADERS.includes(origin.node.type)) return { file: chosen, exact: chosen !== null, key };
  // What the frontend shows on a node with such a setting is the file, not what the node makes of it.
  const own = widget ? null : outputsOf(origin.node)?.images?.[0];
  const file = own ?? previewBeside(origin.node, origin.slot);
  return { file, exact: false, key: `${origin.node.graph.id} ${origin.node.id} ${origin.slot} ${key}` };
}

/** What a preview or save node shows that is connected to the same output. @param {any} node @param {number} slot */
function previewBeside(node, slot) {
  for (const id of node.outputs?.[slot]?.links ?? []) {
    const other = node.graph.getNodeById(node.graph.getLink(id)?.target_id);
    const file = SHOWING_NODES.includes(other?.type) && outputsOf(other)?.images?.[0];
    if (file) return file;
  }
  return null;
}

/**
 * The node that took the place of a node which is no longer in its graph. The graph's undo makes all nodes anew under
 * their old ids, and Nodes 2.0 then goes on showing the element of the old one.
 *
 * @param {any} node
 */
export function successorOf(node) {
  return node.graph?.getNodeById(node.id) === node ? null : app.canvas.graph?.getNodeById(node.id);
}

/** What the node told after its last run. @param {any} node @param {string} key of the message @returns {any} */
export function lastRun(node, key) {
  return outputsOf(node)?.[key]?.[0] ?? null;
}

/** The widget by which a node like Load Image is set to a file. @param {any} node @returns {any} null for others */
function fileWidget(node) {
  const inputs = node.constructor?.nodeData?.inputs ?? {};
  return node.widgets?.find((/** @type {any} */ each) => inputs[each.name]?.image_upload) ?? null;
}

/**
 * The file that a widget is set to, or that it is linked to.
 *
 * @param {any} node
 * @param {any} widget
 * @returns {HostFile | null}
 */
function fileOf(node, widget) {
  const inputs = node.constructor.nodeData.inputs;
  const set = settingOf(node, widget)?.value;
  const value = Array.isArray(set) ? set[0] : set;
  if (typeof value !== "string" || !value) return null;
  const [, path, type] = /** @type {RegExpMatchArray} */ (value.match(/^(.*?)(?: \[(input|output|temp)\])?$/s));
  const cut = path.lastIndexOf("/");
  const folder = type ?? inputs[widget.name].image_folder ?? "input";
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(0, cut)), type: folder };
}

/**
 * The widget that tells the value of a widget, which may be that of a subgraph's outside.
 *
 * @param {any} node
 * @param {any} widget
 * @returns {any} null if only a run tells it
 */
function settingOf(node, widget) {
  const slot = node.inputs?.find((/** @type {any} */ input) => input.widget?.name === widget.name);
  if (slot?.link == null) return widget;
  const origin = follow(node.graph, slot.link, slot.type);
  // Several outsides may be set to different files.
  if (origin?.promoted) return origin.shared ? null : origin.promoted;
  return origin?.node.isVirtualNode ? origin.node.widgets?.[0] : null;
}

/** @param {any} node @returns {any} what the node's last run gave the frontend */
function outputsOf(node) {
  const { graph } = node;
  if (!graph) return undefined;
  return app.nodeOutputs?.[graph === app.rootGraph ? `${node.id}` : `${graph.id}:${node.id}`];
}

/**
 * The node that a link really comes from: behind reroutes, bypassed nodes and the walls of subgraphs.
 *
 * @param {any} graph
 * @param {any} linkId
 * @param {string} type
 * @returns {{ node: any, slot: number, promoted?: any, shared?: boolean } | null} with `promoted`, the link comes from
 *   this widget of a subgraph's outside; `shared` if there are several outsides
 */
function follow(graph, linkId, type) {
  for (let count = 0; count < MOST_LINKS && linkId != null; count += 1) {
    const link = graph.getLink(linkId);
    if (!link) return null;
    if (link.origin_id === graph.inputNode?.id) {
      const hosts = instancesOf(graph);
      const input = hosts[0]?.inputs[link.origin_slot];
      if (!input) return null;
      const promoted = hosts[0].widgets?.find((/** @type {any} */ widget) => widget.name === input.name);
      if (input.link == null) {
        return promoted ? { node: hosts[0], slot: link.origin_slot, promoted, shared: hosts.length > 1 } : null;
      }
      [graph, linkId] = [hosts[0].graph, input.link];
      continue;
    }
    const node = graph.getNodeById(link.origin_id);
    if (!node || node.mode === NEVER) return null;
    if (node.mode === BYPASS) {
      linkId = passedLink(node, link.origin_slot, type);
    } else if (node.isSubgraphNode?.()) {
      graph = node.subgraph;
      linkId = graph.outputs[link.origin_slot]?.linkIds?.[0];
    } else if (node.isVirtualNode && node.inputs?.length) {
      linkId = node.inputs[0].link;
    } else {
      return { node, slot: link.origin_slot };
    }
  }
  return null;
}

/** The link that a bypassed node passes on. @param {any} node @param {number} slot @param {string} type */
function passedLink(node, slot, type) {
  const fits = (/** @type {any} */ input) => input && (input.type === type || input.type === "*");
  const inputs = node.inputs ?? [];
  return (fits(inputs[slot]) ? inputs[slot] : inputs.find(fits))?.link;
}

/** The nodes that stand for a subgraph. @param {any} subgraph @returns {any[]} */
function instancesOf(subgraph) {
  const graphs = [app.rootGraph, ...(app.rootGraph.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph.nodes.filter((/** @type {any} */ node) => node.subgraph === subgraph));
}
