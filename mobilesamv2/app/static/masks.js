// Masks as run lengths and as COCO's JSON. A mask is a Uint8Array of 0 and 1, row by row.

// Number of pixels, and COCO's box x, y, width, height, of a mask; null if it is empty.
export function measure(mask, width) {
  let [x0, y0, x1, y1, area] = [Infinity, Infinity, -1, -1, 0];
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const x = i % width;
    const y = (i - x) / width;
    area++;
    if (x < x0) x0 = x;
    if (x > x1) x1 = x;
    if (y < y0) y0 = y;
    y1 = y;
  }
  return area ? { area, bbox: [x0, y0, x1 - x0 + 1, y1 - y0 + 1] } : null;
}

// The mask as compressed RLE, which pycocotools reads.
export function encode(mask, width, height) {
  return { size: [height, width], counts: compress(runLengths(mask, width, height)) };
}

// Alternately pixels outside and inside the mask, counted down the columns.
function runLengths(mask, width, height) {
  const runs = [];
  let [value, run] = [0, 0];
  for (let x = 0; x < width; x++) {
    for (let i = x; i < mask.length; i += width) {
      if (mask[i] === value) {
        run++;
      } else {
        runs.push(run);
        [value, run] = [mask[i], 1];
      }
    }
  }
  runs.push(run);
  return runs;
}

// Run lengths as text, six bits a character, from the third on as differences. Source: rleToString of pycocotools.
function compress(runs) {
  let text = "";
  runs.forEach((run, i) => {
    let rest = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more; ) {
      let bits = rest & 0x1f;
      rest >>= 5;
      more = bits & 0x10 ? rest !== -1 : rest !== 0;
      if (more) bits |= 0x20;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}

// COCO's JSON of the masks of one image. masks: objects with the keys of an annotation beside rle, area and bbox.
export function toCoco(image, masks, about) {
  return {
    info: { description: `Masks by ${about.model}, mobilesamv2 ${about.version}` },
    images: [{ id: 1, width: image.width, height: image.height, file_name: image.name }],
    categories: [{ id: 1, name: "object" }],
    annotations: masks.map(({ rle, ...rest }, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      segmentation: rle,
      ...rest,
    })),
  };
}
