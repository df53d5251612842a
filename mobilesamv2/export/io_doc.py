"""Inputs and outputs of the exported graphs: the text of ``mobilesamv2 export --help`` and of the files themselves."""

_PREPROCESSING = (
    "RGB, resized so that the longest side is S = image_size (Pillow's bilinear; the other side is "
    "int(side * S / longest + 0.5))"
)
ENCODER_IO_DOC = (
    f"image: (B, 3, S, S) float32, any number of images. {_PREPROCESSING}, minus pixel_mean, over pixel_std (units of "
    "0 to 255), then padded with zeros at the right and the bottom. image_embedding: (B, C, S/16, S/16) float32."
)
_POINTS = (
    "1 foreground, 0 background, -1 padding, 2 upper left and 3 lower right corner of a box; a prompt without a box "
    "ends with a point (0, 0) labelled -1"
)
DECODER_IO_DOC = (
    "image_embedding: (B, C, S/16, S/16), of one image or more. points: (N, P, 2) float32 xy in pixels of the resized "
    f"image. labels: (N, P) int64: {_POINTS}. mask_input: (M, 1, S/4, S/4) float32, low_res_logits of an earlier run. "
    "has_mask_input: (M,) float32, 1, or 0 where a mask is to be ignored; without masks, B of them that are ignored. "
    "In order, each image serves M/B masks and each mask N/M prompts: M = 1 is one mask for all, M = N one for each "
    "prompt. Other numbers are refused. N and P are any number, P = 0 for a mask alone; memory goes with N, 25 MB each "
    "at S = 1024, so batches of 16 to 64 work best. low_res_logits: (N, 4, S/4, S/4), and predicted_iou: "
    "(N, 4): 0 is the single mask, 1 to 3 are the three of an ambiguous prompt. Resized bilinearly to S x S, cropped "
    "to the resized image and resized to the original size, a mask is where the logits are above mask_threshold."
)
SAM_ENCODER_IO_DOC = (
    f"input_image: (height, width, 3) float32, 0 to 255. {_PREPROCESSING}; a smaller one is allowed, a side above S is "
    "refused. Normalisation and padding are part of the graph. image_embeddings: (1, C, S/16, S/16) float32."
)
SAM_DECODER_IO_DOC = (
    "All float32. image_embeddings: (1, C, S/16, S/16). point_coords: (1, P, 2) xy in pixels of the resized image. "
    f"point_labels: (1, P): {_POINTS}. mask_input: (1, 1, S/4, S/4), low_res_masks of an earlier run, or zeros. "
    "has_mask_input: (1,), 1 or 0. orig_im_size: (2,), height and width of the original image. masks: (1, 4, H, W), "
    "logits at the original size, above mask_threshold inside. iou_predictions: (1, 4). low_res_masks: (1, 4, S/4, "
    "S/4). Mask 0 is the single mask, 1 to 3 are the three of an ambiguous prompt. With --return-single-mask there is "
    "one instead of four: mask 0 for three points or more, padding included, else the best of 1 to 3."
)
SAM_2_IO_DOC = (
    "Of a SAM 2: the image is resized to S x S by an antialiased bilinear filter on floats, whatever its aspect ratio, "
    "and nothing is padded or cropped, so that x and y have a scale each. Every prompt ends with a point (0, 0) "
    "labelled -1, those with a box too (pad_boxes in the metadata). image_embedding has 4C channels, the finer levels "
    "packed, or 2C or C where the encoder leaves them out. Mask 0 is the single mask, or, where it is unstable, the "
    "best of 1 to 3, as in torch. low_res_logits are to be clamped to -32 to 32 where they are fed back as mask_input, "
    "as SAM 2's predictor does, and as they are where masks are made of them."
)
EFFICIENT_SAM_IO_DOC = (
    "Of an EfficientSAM: the image is resized to S x S by a bilinear filter on floats without antialiasing, whatever "
    "its aspect ratio, and nothing is padded or cropped, so that x and y have a scale each; low_res_logits are resized "
    "to the original size bicubically, in one step. A prompt has at most 6 points, of which a box is two (takes_masks, "
    "takes_background and max_points in the metadata); further ones are ignored, and so are mask_input and "
    "has_mask_input. The label 0 has no meaning. Mask 0 is the best of 1 to 3, as in torch."
)
