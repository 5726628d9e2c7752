/**
 * Loads the files behind the parts of a picture, each only when it is another one than before.
 *
 * @typedef {import("./host.js").HostFile} HostFile
 */
import { viewUrl } from "./host.js";
import { loadImage } from "./layers.js";

export class Loads {
  /** @type {Record<string, string>} */
  #keys = {};
  #loaded;

  /** @param {(part: string, layer: any, failed: boolean) => void} loaded called when a part has changed */
  constructor(loaded) {
    this.#loaded = loaded;
  }

  /**
   * @param {string} part
   * @param {HostFile | null | undefined} file
   * @param {string} version tells files of one name apart
   * @param {(image: HTMLImageElement) => any} makeLayer
   */
  async load(part, file, version, makeLayer) {
    const key = file ? `${version} ${JSON.stringify(file)}` : "";
    if (key === (this.#keys[part] ?? "")) return;
    this.#keys[part] = key;
    let layer = null;
    let failed = false;
    try {
      layer = file ? makeLayer(await loadImage(viewUrl(file))) : null;
    } catch {
      failed = true;
    }
    // Another picture may have been asked for in the meantime.
    if (key === this.#keys[part]) this.#loaded(part, layer, failed);
  }
}
