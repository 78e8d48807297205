"""Names of the authors' dLDM tokenizer weights (VideoWorld 2, release) from those of an LDM with parts causal and a
connector, by rule; shapes are the same.

Of their 467 entries 461 are parameters. Of the 6 buffers one is ours too, the frequencies of the places; the others are
constants of the Haar patches, which an export makes anew.
"""

import re

import torch
from torch import Tensor

from vw2.interop.checkpoints import KeyMap
from vw2.models.ldm import LDM

QUERY = "encoder.qformer_ldm.qformer."
RULES = [  # ours -> theirs, one after the other
    (r"^query\.out\.", "encoder.outproj_ldm."),
    (r"^query\.to_digits\.", "quant_conv."),
    (r"^query\.former\.", "query."),
    (r"^query\.query$", "encoder.act.weight"),
    (r"^query\.places\.frequencies$", "encoder.pos_embedding.positional_encoding_gaussian_matrix"),
    (r"^query\.(.*)to_([qkv])\.", r"query.\1\2_proj."),
    (r"^query\.(.*)to_out\.", r"query.\1out_proj."),
    (r"^query\.(.*)attention\.", r"query.\1cross_attn_token_to_image."),
    (r"^query\.(.*\d\.)norm\.", r"query.\1norm2."),
    (r"^query\.(.*)norm_mlp\.", r"query.\1norm3."),
    (r"^query\.(.*)(lin[12])\.", r"query.\1mlp.\2."),
    (r"^query\.last\.", QUERY + "final_attn_token_to_image."),
    (r"^query\.norm\.", QUERY + "norm_final_attn."),
    (r"^query\.", QUERY),
    (r"^decoder\.from_digits\.", "post_quant_conv."),
    (r"^connector\.", "quant_to_dit_dim."),
    (r"\.mid\.block", ".mid.block_"),
    (r"\.mid\.attn\.", ".mid.attn_1."),
    (r"\.codes\.to_q\.", ".codes.q_proj."),
    (r"\.codes\.to_kv\.", ".codes.kv_proj."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.", ".proj_out."),
    (r"(attn\w*(?:\.\d+)?)\.codes\.", r"\1.0."),
    (r"^(decoder.*attn\w*(?:\.\d+)?)\.space\.", r"\1.1."),
    (r"^(decoder.*attn\w*(?:\.\d+)?)\.time\.", r"\1.2."),
    (r"(conv\w+)\.space\.", r"\1.0."),
    (r"(conv\w+)\.time\.", r"\1.1."),
    (r"\.downsample\.space\.conv\.|\.upsample\.time\.conv\.", r"\g<0>1"),
    (r"\.downsample\.time\.conv\.|\.upsample\.space\.conv\.", r"\g<0>2"),
    (r"sample\.\w+\.conv\.([12])", r"sample.conv\1."),
    (r"sample\.out\.", "sample.conv3."),
    (r"\.shortcut\.", ".nin_shortcut."),
    # their convolutions and frame norms are wrapped once; what lies in the Q-former, and `kv_proj`, is not
    (rf"^(?!{re.escape(QUERY)}|encoder\.act)(.*norm\w*)\.(weight|bias)$", r"\1.norm.\2"),
    (rf"^(?!{re.escape(QUERY)}|encoder\.act)(.*)(?<!norm)(?<!kv_proj)\.(weight|bias)$", r"\1.conv3d.\2"),
]


def theirs(key: str) -> str:
    """Our name of a weight -> theirs."""
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    return key


def haar_buffers(model: LDM) -> dict[str, Tensor]:
    """The constants that their Haar patches keep among the weights."""
    half = torch.full((2,), 0.5).sqrt()
    side = torch.tensor([model.config.causal.patch], dtype=torch.int32)
    buffers = {"encoder.patcher3d.patch_size_buffer": side}
    for module in ("encoder.patcher3d", "decoder.unpatcher3d"):
        buffers |= {f"{module}.wavelets": half.clone(), f"{module}._arange": torch.arange(2)}
    return buffers


TOKENIZER = KeyMap("dLDM tokenizer", theirs, ("network.", "ldm_net.network."), haar_buffers)
