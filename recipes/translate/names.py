"""Names that the options take. Importing them imports no torch."""

# The default translator.
MADLAD = "google/madlad400-3b-mt"
# Its dtype: option -> torch's name.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The subsets that the paper translates; HatefulMemes, DocVQA and the like it leaves out.
SUBSETS = (
    "A-OKVQA",
    "CIFAR_100",
    "CIRR",
    "FashionIQ",
    "ImageNet-A",
    "ImageNet-R",
    "ImageNet_1K",
    "MSCOCO",
    "MSCOCO_i2t",
    "MSCOCO_t2i",
    "N24News",
    "NIGHTS",
    "OK-VQA",
    "SUN397",
    "VOC2007",
    "VisDial",
    "Visual7W",
    "Visual7W-pointing",
    "VisualNews_i2t",
    "VisualNews_t2i",
    "WebQA",
)
# The keys of `checks.CHECKS`.
CHECKS = (
    *("empty", "pairing", "artefact", "broken", "sentence", "placeholder", "number", "quote", "newline"),
    *("copy", "repeats", "script", "length", "language"),
)
