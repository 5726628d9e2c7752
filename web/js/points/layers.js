/**
 * Pictures in the form in which they are quick to draw: a picture as a row of halved copies, a mask as its
 * transparency.
 *
 * @typedef {{ width: number, height: number, levels: CanvasImageSource[] }} Layer
 * @typedef {{ width: number, height: number, soft: HTMLCanvasElement, hard: HTMLCanvasElement }} MaskLayer
 */

/** Copies get halved down to this longest side. */
const SMALLEST_SIDE = 512;
/** A mask is shown with no more pixels than this on its longest side. */
const MASK_SIDE = 1024;

/** @param {string} url @returns {Promise<HTMLImageElement>} the decoded image */
export async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** @param {HTMLImageElement} image @returns {Layer} */
export function pictureLayer(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  /** @type {CanvasImageSource[]} */
  const levels = [image];
  let [w, h] = [width, height];
  while (Math.max(w, h) > SMALLEST_SIDE) {
    [w, h] = [Math.max(1, w >> 1), Math.max(1, h >> 1)];
    const { canvas, context } = newCanvas(w, h);
    context.imageSmoothingQuality = "high";
    context.drawImage(levels[levels.length - 1], 0, 0, w, h);
    levels.push(canvas);
  }
  return { width, height, levels };
}

/**
 * The mask with its brightness as opacity, once as it is and once cut at one half.
 *
 * @param {HTMLImageElement} image grey
 * @returns {MaskLayer}
 */
export function maskLayer(image) {
  const scale = Math.min(1, MASK_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  const soft = newCanvas(width, height);
  const hard = newCanvas(width, height);
  soft.context.drawImage(image, 0, 0, width, height);
  const pixels = soft.context.getImageData(0, 0, width, height);
  const cut = new ImageData(width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i + 3] = pixels.data[i];
    cut.data[i + 3] = pixels.data[i] >= 128 ? 255 : 0;
  }
  soft.context.putImageData(pixels, 0, 0);
  hard.context.putImageData(cut, 0, 0);
  return { width, height, soft: soft.canvas, hard: hard.canvas };
}

/** @param {number} width @param {number} height */
export function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: false }));
  return { canvas, context };
}
