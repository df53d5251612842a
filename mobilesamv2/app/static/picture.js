// Pictures in, files out.

const MAX_PIXELS = 16_000_000; // phones give a page no larger canvas

// Decode an image file, upright, on white where it is transparent, with the numbers that are in the file whatever its
// colour profile, as mobilesamv2 reads it. Larger ones are reduced to MAX_PIXELS.
export async function openPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${name} can't be decoded by this browser; JPEG, PNG and WebP can.`);
  }
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(bitmap.width * scale));
  canvas.height = Math.max(1, Math.floor(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { canvas, name, width: canvas.width, height: canvas.height, isReduced: scale < 1 };
}

export function pixelsOf({ canvas, width, height }) {
  return canvas.getContext("2d").getImageData(0, 0, width, height).data;
}

// A PNG of the picture's size, white inside the mask and black outside.
export function maskPng(mask, { width, height }) {
  return png(width, height, (pixels) => {
    for (let i = 0; i < mask.length; i++) pixels[i] = mask[i] ? 0xffffffff : 0xff000000;
  });
}

// A PNG of the object alone, transparent around it. box: x, y, width, height of the mask.
export function cutoutPng(mask, picture, [x0, y0, width, height]) {
  const source = new Uint32Array(pixelsOf(picture).buffer);
  return png(width, height, (pixels) => {
    for (let y = 0; y < height; y++) {
      const row = (y0 + y) * picture.width + x0;
      for (let x = 0; x < width; x++) pixels[y * width + x] = mask[row + x] ? source[row + x] : 0;
    }
  });
}

// paint fills a pixel a number: red, green, blue and opacity from its lowest byte on.
function png(width, height, paint) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  paint(new Uint32Array(image.data.buffer));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// Save a blob as a file named after the picture.
export function save(blob, picture, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = picture.name.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
