"""Inputs and outputs of the exported graphs: the text of ``mobilesamv2 export --help`` and of the files themselves."""

ENCODER_IO_DOC = (
    "image: (1, 3, S, S) float32. RGB, resized so that the longest side is S = image_size (Pillow's bilinear; the "
    "other side is int(side * S / longest + 0.5)), minus pixel_mean, over pixel_std (units of 0 to 255), then padded "
    "with zeros at the right and the bottom. image_embedding: (1, C, S/16, S/16) float32."
)
DECODER_IO_DOC = (
    "image_embedding: (1, C, S/16, S/16), of the encoder. points: (N, P, 2) float32 xy in pixels of the resized "
    "image. labels: (N, P) int64: 1 foreground, 0 background, -1 padding, 2 upper left and 3 lower right corner of a "
    "box; a prompt without a box ends with a point (0, 0) labelled -1. N and P are any number; memory goes with N, "
    "25 MB each at S = 1024, so batches of 16 to 64 work best. low_res_logits: (N, 4, S/4, S/4), and predicted_iou: "
    "(N, 4): 0 is the single mask, 1 to 3 are the three of an ambiguous prompt. Resized bilinearly to S x S, cropped "
    "to the resized image and resized to the original size, a mask is where the logits are above mask_threshold."
)
SAM_2_IO_DOC = (
    "Of a SAM 2: the image is resized to S x S by an antialiased bilinear filter on floats, whatever its aspect ratio, "
    "and nothing is padded or cropped, so that x and y have a scale each. Every prompt ends with a point (0, 0) "
    "labelled -1, those with a box too (pad_boxes in the metadata). image_embedding has 4C channels, the finer levels "
    "packed, or 2C or C where the encoder leaves them out. Mask 0 is the single mask, or, where it is unstable, the "
    "best of 1 to 3, as in torch."
)
