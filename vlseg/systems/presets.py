"""Other people's pretrained systems by name: which checkpoints, whose licence, how large, and what they can do.

A row names its factory as "module:function"; the module is imported when the system is asked for, not before. The
factory gets ``(places, device, dtype, name)``: one local folder (or file) a part, in the order of `Preset.parts`
(None for an optional part that was not given; the id itself for a part that its own library fetches), and the words of
`--device` and `--dtype`; it returns a `System`. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint that a system is made of.

    id: on the Hugging Face Hub; for `hub` False the name under which the library of the system fetches it. parameters:
    in millions, 0 where it has none. gated: its owner wants the licence accepted before anything is downloaded.
    optional: the system runs without it; it is never fetched, only given. config: the file that a folder must hold.
    named: in the place of a folder or file may stand a name that the library of the system knows.
    """

    role: str
    id: str
    licence: str
    parameters: int
    gated: bool = False
    revision: str = "main"
    hub: bool = True
    optional: bool = False
    config: str = "config.json"
    named: bool = False


@dataclass(frozen=True, slots=True)
class Preset:
    """A system of others. factory: "module:function".

    queries: the kind of words that it was made for. instances: several objects come as several segments. absent: how
    it says that nothing is there, "" where it cannot. boxes: what stands between words and mask is a box. model_types:
    those of config.json whose folders this system opens. packages: what pip must install beyond vlseg's own needs.
    """

    name: str
    what: str
    factory: str
    parts: tuple[Part, ...]
    queries: str
    instances: bool
    absent: str
    boxes: bool = False
    model_types: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Millions, over all parts that are fetched."""
        return sum(part.parameters for part in self.parts if not part.optional)

    @property
    def licence(self) -> str:
        """Of the weights that are fetched, each once; "" where they are the user's."""
        return ", ".join(dict.fromkeys(part.licence for part in self.parts if part.licence and not part.optional))

    @property
    def gated(self) -> bool:
        """Whether any part is."""
        return any(part.gated for part in self.parts)


SAM2 = Part("masks", "facebook/sam2.1-hiera-small", "Apache-2.0", 46)
OPEN_CLIP = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
# For queries that are no class name: its text tower finds the nearest one.
CLIP = Part("clip", "openai/clip-vit-base-patch32", "MIT", 63, optional=True)

_ROWS = (
    Preset(
        "clipseg",
        "CLIP ViT-B/16 with a small decoder; one soft map a query, at 352 pixels",
        "vlseg.systems.clipseg:open_system",
        (Part("model", "CIDAS/clipseg-rd64-refined", "Apache-2.0", 151),),
        queries="short phrases",
        instances=False,
        absent="highest pixel probability",
        model_types=("clipseg",),
    ),
    Preset(
        "grounded-sam2",
        "Grounding DINO finds boxes for the words, SAM 2 makes them masks",
        "vlseg.systems.grounded_sam2:open_system",
        (Part("detector", "IDEA-Research/grounding-dino-tiny", "Apache-2.0", 172), SAM2),
        queries="noun phrases",
        instances=True,
        absent="score of the best box",
        boxes=True,
        model_types=("grounding-dino",),
    ),
    Preset(
        "mm-grounded-sam2",
        "as grounded-sam2, with MM-Grounding DINO",
        "vlseg.systems.grounded_sam2:open_system",
        (
            Part("detector", "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", "Apache-2.0", 172),
            SAM2,
        ),
        queries="noun phrases",
        instances=True,
        absent="score of the best box",
        boxes=True,
        model_types=("mm-grounding-dino",),
    ),
    Preset(
        "sam3",
        "SAM 3: every instance of a concept, with a presence head; spatial words are ignored",
        "vlseg.systems.sam3:open_system",
        (Part("model", "facebook/sam3", "SAM License", 848, gated=True),),
        queries="noun phrases",
        instances=True,
        absent="presence head x best instance",
        model_types=("sam3", "sam3_video"),
    ),
    Preset(
        "florence2",
        "Florence-2: writes polygons for a referring expression; always answers",
        "vlseg.systems.florence2:open_system",
        (Part("model", "florence-community/Florence-2-large", "MIT", 777),),
        queries="referring expressions",
        instances=False,
        absent="",
        model_types=("florence2",),
    ),
    Preset(
        "qwen3-vl+sam2",
        "Qwen3-VL names boxes or points by chat, SAM 2 makes them masks",
        "vlseg.systems.qwen_vl_sam2:open_system",
        (Part("chat", "Qwen/Qwen3-VL-2B-Instruct", "Apache-2.0", 2127), SAM2),
        queries="referring expressions",
        instances=True,
        absent="an answer without a box",
        boxes=True,
        model_types=("qwen3_vl",),
    ),
    Preset(
        "qwen2.5-vl+sam2",
        "as qwen3-vl+sam2, with Qwen2.5-VL",
        "vlseg.systems.qwen_vl_sam2:open_system",
        (Part("chat", "Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0", 8292), SAM2),
        queries="referring expressions",
        instances=True,
        absent="an answer without a box",
        boxes=True,
        model_types=("qwen2_5_vl",),
    ),
    Preset(
        "paligemma",
        "PaliGemma 2: <loc> and <seg> tokens; masks with your vae-oid.npz, boxes without it",
        "vlseg.systems.paligemma:open_system",
        (
            Part("model", "google/paligemma2-3b-mix-448", "Gemma terms", 3033, gated=True),
            Part("mask decoder", "vae-oid.npz", "Apache-2.0", 1, hub=False, optional=True),
        ),
        queries="short phrases",
        instances=True,
        absent="probability that the answer begins with a box",
        boxes=True,
        model_types=("paligemma",),
    ),
    *(
        Preset(
            name,
            f"any open_clip model (a folder, or ARCHITECTURE,CHECKPOINT), training-free: {what}",
            f"vlseg.systems.open_clip_maps:{factory}",
            (
                Part("model", OPEN_CLIP, "MIT", 150, config="open_clip_config.json", named=True),
                Part("checkpoint", "", "", 0, hub=False, optional=True, named=True),
            ),
            queries="short phrases",
            instances=False,
            absent=f"highest probability of a {what.split()[0]} against background words",
        )
        for name, factory, what in (
            ("open_clip", "open_system", "patch by patch"),
            ("open_clip-clusters", "open_clusters", "cluster by cluster of patches (k-means)"),
        )
    ),
    *(
        Preset(
            name,
            what,
            f"vlseg.systems.{name}:open_system",
            (Part("model", id, licence, parameters), CLIP),
            queries="class names",
            instances=True,
            absent="no query of the model is of the class",
            model_types=types,
        )
        for name, what, id, licence, parameters, types in (
            (
                "eomt",
                "EoMT: 133 classes of COCO panoptic by a plain ViT",
                "tue-mps/coco_panoptic_eomt_large_640",
                "MIT",
                317,
                ("eomt", "eomt_dinov3"),
            ),
            (
                "mask2former",
                "Mask2Former: 133 classes of COCO panoptic",
                "facebook/mask2former-swin-tiny-coco-panoptic",
                "other, see its card",
                47,
                ("mask2former",),
            ),
            (
                "oneformer",
                "OneFormer: 150 classes of ADE20K",
                "shi-labs/oneformer_ade20k_swin_tiny",
                "MIT",
                51,
                ("oneformer",),
            ),
        )
    ),
    *(
        Preset(
            name,
            what,
            f"vlseg.systems.torchvision_models:{factory}",
            (
                Part("model", "COCO_V1" if instances else "COCO_WITH_VOC_LABELS_V1", "BSD-3", parameters, hub=False),
                Part("class names", "a text file", "", 0, hub=False, optional=True),
            ),
            queries="class names",
            instances=instances,
            absent="score of the best instance" if instances else "no pixel of the class",
            boxes=instances,
            # of nets trained here; of deeplabv3 and fcn the folder says which
            model_types={"deeplabv3": ("vlseg-torchvision",), "mask-rcnn": ("vlseg-mask-rcnn",)}.get(name, ()),
        )
        for name, what, factory, parameters, instances in (
            ("mask-rcnn", "torchvision's Mask R-CNN: 80 classes of COCO", "open_mask_rcnn", 44, True),
            ("deeplabv3", "torchvision's DeepLabV3: 20 classes of PASCAL VOC", "open_deeplabv3", 42, False),
            ("fcn", "torchvision's FCN: 20 classes of PASCAL VOC", "open_fcn", 35, False),
        )
    ),
    *(
        Preset(
            name,
            f"{what}: classes of your own, trained with `vlseg train closed closed={name}`",
            "vlseg.systems.closed_maps:open_system",
            (Part("model", "", "yours", 0, hub=False), CLIP),
            queries="class names",
            instances=False,
            absent="no pixel of the class",
            model_types=(kind,),
            packages=("segmentation-models-pytorch",) if name != "segnet" else (),
        )
        for name, what, kind in (
            ("unet", "U-Net", "Unet"),
            ("unet++", "U-Net++", "UnetPlusPlus"),
            ("deeplabv3+", "DeepLabV3+", "DeepLabV3Plus"),
            ("fpn", "feature pyramid", "FPN"),
            ("segformer", "SegFormer", "Segformer"),
            ("dpt", "dense prediction transformer", "DPT"),
            ("segnet", "SegNet", "vlseg-segnet"),
        )
    ),
)

PRESETS: dict[str, Preset] = {row.name: row for row in _ROWS}


def preset_of_type(model_type: str) -> Preset | None:
    """The system that opens a checkpoint whose config.json has this model_type."""
    return next((preset for preset in PRESETS.values() if model_type in preset.model_types), None)
