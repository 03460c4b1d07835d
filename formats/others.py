"""What a file holds that is no generator of ours, or not as plain weights, and what to do then."""

import re
from typing import Any

from torch import Tensor

TRAINING_STATE = re.compile(  # in the keys around tensors
    r"optimi[sz]er|exp_avg|momentum_buffer|(?:^|[._])(?:optims?|opt|schedulers?|grads?)(?:[._]|$)",
    re.IGNORECASE,
)
LORA = "holds a LoRA, changes to a network; merge them into that network and save it"
QUANTISED = "is quantised; save it in floating point"
ELSEWHERE = "which is not computed here; spandrel and chaiNNer compute it"

STORED_OTHERWISE = {  # among a generator's names -> what the file does
    r"lora_|hada_|lokr_": LORA,
    r"\.weight_(g|v|orig|mask)$|\.parametrizations\.": "keeps weights in parts; take weight norm, "
    "spectral norm or pruning off before saving (torch.nn.utils has the functions)",
    r"\.zero_point$|_packed_params|\.SCB$|quant_state|\.absmax$|\.weight_scale$": QUANTISED,
    r"^de_net\.": f"holds MM-RealSR's network, {ELSEWHERE}",
}
NETWORKS = {  # a name that tells another generator -> its name
    r"block_\d\.c1_r\.": "SPAN",
    r"before_RG\.": "DAT or RGT",
    r"attn_atd\.": "ATD",
    r"hf_blocks\.": "CRAFT",
    r"residual_group\.overlap_attn\.": "HAT",
    r"residual_group\.blocks\.": "SwinIR or Swin2SR",
    r"layers\.0\.swin1\.": "DRCT",
    r"attn\.stripe_attn\.": "GRL",
    r"UFONE\.": "DITN",
    r"residual_layer\.0\.residual_layer\.": "OmniSR",
    r"transformer_body\.": "DCTLSA",
    r"unet1\.conv_bottom\.": "RealCUGAN",
    r"feats\.\d+\.(layers\.\d+\.)?safm\.": "SAFMN",
    r"feats\.\d+\.lk\.": "PLKSR",
    r"gblocks\.": "MoSR",
    r"in_to_dim\.": "MoESR",
    r"local_block\.": "SeemoRe",
    r"cnn\.depthwise\.": "Swift-SRGAN",
    r"conv_du\.": "RCAN",
    r"blocks\.0\.inter\.": "FDAT",
    r"body\.encoder\.layers\.": "IPT",
    r"mid_attn\.": "AuraSR",
    r"stylegan_decoder\.": "GFPGAN",
    r"quantize\.embedding\.": "RestoreFormer",
    r"bn_l\.": "LaMa",
    r"qf_pred\.": "FBCNN",
    r"m_down1\.\d+\.res\.": "DRUNet",
    r"m_tail\.0\.": "SCUNet",
    r"encoderlayer_0\.": "Uformer",
    r"ffn\.fft$": "FFTformer",
    r"attgamma$|latent\.0\.ffn\.qkv\.": "KBNet",
    r"middle_blks\.": "NAFNet",
    r"denoiser\.": "RetinexFormer",
    r"HVE_block": "HVI-CIDNet",
    r"patch_split1\.": "MixDehazeNet",
    r"body\.1\.weight$": "SRVGGNetCompact",  # the last, because others have parts named so
}
SRFLOW = r"flowUpsamplerNet\."
SRDIFF = r"denoise_fn\."
SPSR = r"f_HR_conv\d|b_concat_\d"
OTHER_KINDS = {  # of what spandrel does not know either
    r"lora_|hada_|lokr_": LORA,
    rf"diffusion_model\.|{SRDIFF}": "holds a diffusion model",
    r"body\.\d+\.body\.\d+\.weight$": "holds an EDSR network; its own programs run it",
    r"body\.\d+\.conv1\.weight$": "holds an MSRResNet; BasicSR runs it",
    r"classifier\.6\.": "holds an image classifier such as VGG19",
    r"model\.2\.sub\.\d+\.RDB\d\.": "holds ESRGAN-2c2's network, which has two convolutions of 2x2 "
    "for each of ESRGAN's; its own programs run it",
    SRFLOW: "holds SRFlow's network; its own programs run it",
    SPSR: "holds SPSR's network; its own programs run it",
}
# Beside a generator's names: it is a part of another network, which sums other maps than ours.
PART_OF_ANOTHER = re.compile(rf"(?:^|\.)(?:{SRFLOW}|{SPSR}|{SRDIFF})")
# Keys and modules that discriminators go by, and names in those of known ones.
CALLED_DISCRIMINATOR = re.compile(r"(?:^|[._])(?:net_?d|d|disc|discriminator|critic)[._]", re.I)
DISCRIMINATORS = (
    r"conv0_0\.|conv9\.|conv\d\.(weight_orig|parametrizations)|classifier\.\d|"
    r"blocks\.\d\.cnn\."
)
DNCNN = r"model\.(3\.running_mean|14\.weight)$"  # a patch discriminator's names begin like it


def what_instead(content: object, groups: list[Any]) -> str:
    """What to say of a file without a generator: "FILE is not an ESRGAN generator: it ...".

    Args:
        content: all that it holds.
        groups: its dicts of tensors; each with `.keys`, those that lead there, and `.tensors`.
    """
    states = [
        {f"{prefix}.{name}" if prefix else name: group.tensors[name] for name in group.tensors}
        for group in groups
        if not TRAINING_STATE.search(prefix := ".".join(map(str, group.keys)))
    ]
    discriminator = "holds a discriminator; the generator is what is needed"
    others = [
        {name: state[name] for name in state if not CALLED_DISCRIMINATOR.search(name)}
        for state in states
    ]
    names = [name for state in others for name in state]
    if any(states) and not names:
        return discriminator

    def any_is(sign: str) -> bool:
        return any(re.search(rf"(?:^|\.)(?:{sign})", name) for name in names)

    if network := next((network for sign, network in NETWORKS.items() if any_is(sign)), None):
        return f"holds a network of {network}, {ELSEWHERE}"
    if kind := next((kind for sign, kind in OTHER_KINDS.items() if any_is(sign)), None):
        return kind
    if any_is(DISCRIMINATORS) or any(map(_judges, others)):
        return discriminator
    if any_is(DNCNN):
        return f"holds a network of DnCNN, {ELSEWHERE}"
    if names:
        return f"holds {', '.join([*names[:3], '...'])}"
    return _without_tensors(content, bool(groups))


def _judges(tensors: dict[str, Tensor]) -> bool:
    """Whether a network ends in a single number, or in a map of them as PatchGAN's does."""
    weights = [tensor for tensor in tensors.values() if tensor.ndim in (2, 4)]
    if len(weights) < 2 or weights[-1].shape[0] != 1:
        return False
    return weights[-1].ndim == 2 or weights[-1].shape[-1] == 4


def _without_tensors(content: object, training_state: bool) -> str:
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}"
    if training_state or any(TRAINING_STATE.search(str(key)) for key in content):
        return "holds a training state without the network"
    others = [key for key, value in content.items() if not isinstance(value, dict)]
    return f"holds {others[0]}, which is no tensor" if others else "holds nothing"
