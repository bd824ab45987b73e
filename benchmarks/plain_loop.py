"""The plain loop: a fine-tuning of Stable Diffusion as the example scripts of diffusers write it, for comparison.

    python benchmarks/plain_loop.py --method lora --base FOLDER --images FOLDER --output_dir FOLDER

Every step reads pictures, encodes them with the autoencoder and their prompts with the text encoder, adds noise, and
trains the U-Net, adapters in it, or rows of the text encoder's table; all parts stay in memory. The last step is
checkpointed with accelerate's `save_state`, as theirs is in a run of 500 steps, and the result is saved at the end.
No validation, no picture, no check. Written after the structure of train_text_to_image(_lora).py,
train_dreambooth(_lora).py, textual_inversion.py and train_dreambooth_lora_sd15_advanced.py of diffusers 0.42.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

WHOLE = ("full_unet", "dreambooth")
ADAPTERS = ("lora", "lora_dreambooth", "pivotal_tuning")
WORDS = ("textual_inversion", "pivotal_tuning")
METHODS = (*WHOLE, "lora", "lora_dreambooth", *WORDS)
PLACEHOLDER = "<plain>"


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures of a folder with NAME.txt beside NAME.png, or all under one prompt, decoded each time."""

    def __init__(self, folder: Path, tokenizer: CLIPTokenizer, resolution: int, prompt: str | None) -> None:
        self._paths, self._tokenizer = sorted(folder.glob("*.png")), tokenizer
        self._resolution, self._prompt = resolution, prompt

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path, side = self._paths[index], self._resolution
        with Image.open(path) as picture:
            scale = side / min(picture.size)
            width, height = (max(side, round(length * scale)) for length in picture.size)
            resized = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32)
        prompt = self._prompt or path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        ids = self._tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self._tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids[0]
        return {"pixels": torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous(), "input_ids": ids}


def main() -> None:
    arguments = _arguments()
    method: str = arguments.method
    accelerator = Accelerator(mixed_precision="no")
    torch.manual_seed(0)
    base = arguments.base
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", trust_remote_code=False)
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", use_safetensors=True)
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", use_safetensors=True)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", use_safetensors=True)
    for part in (vae, text_encoder, unet):
        part.requires_grad_(False)
        part.to(accelerator.device)

    trained: list[torch.nn.Parameter] = []
    if method in WHOLE:
        unet.requires_grad_(True)
        unet.train()
        trained += unet.parameters()
    if method in ADAPTERS:
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(
            LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, init_lora_weights="gaussian", target_modules=layers)
        )
        cast_training_params([unet], dtype=torch.float32)
        trained += [parameter for parameter in unet.parameters() if parameter.requires_grad]
    prompt = arguments.prompt
    if method in WORDS:
        tokenizer.add_tokens([PLACEHOLDER])
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = text_encoder.get_input_embeddings().weight.requires_grad_(True)
        text_encoder.train()
        trained.append(table)
        prompt = f"a photo of a {PLACEHOLDER}"
        untouched = torch.ones(len(tokenizer), dtype=torch.bool)
        untouched[-1] = False
        original = table.detach().clone()

    optimizer = torch.optim.AdamW(trained, lr=arguments.learning_rate, weight_decay=1e-2)
    loader = DataLoader(
        Pictures(arguments.images, tokenizer, arguments.resolution, prompt),
        shuffle=True,
        batch_size=arguments.train_batch_size,
    )
    rates = get_scheduler("constant", optimizer=optimizer)
    unet, text_encoder, optimizer, loader, rates = accelerator.prepare(unet, text_encoder, optimizer, loader, rates)

    step = 0
    while step < arguments.max_train_steps:
        for batch in loader:
            latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device
            ).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            states = text_encoder(batch["input_ids"], return_dict=False)[0]
            v = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(latents, noise, timesteps) if v else noise
            prediction = unet(noisy, timesteps, states, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            accelerator.gather(loss.repeat(arguments.train_batch_size)).mean().item()
            accelerator.backward(loss)
            if method != "textual_inversion":
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            if method in WORDS:
                with torch.no_grad():
                    accelerator.unwrap_model(text_encoder).get_input_embeddings().weight[untouched] = original[
                        untouched
                    ]
            step += 1
            if step == arguments.max_train_steps:
                break
    folder: Path = arguments.output_dir
    accelerator.save_state(str(folder / f"checkpoint-{step}"))

    unet, text_encoder = accelerator.unwrap_model(unet), accelerator.unwrap_model(text_encoder)
    if method in WHOLE:
        pipeline = StableDiffusionPipeline.from_pretrained(
            base,
            unet=unet,
            text_encoder=text_encoder,
            vae=vae,
            safety_checker=None,
            feature_extractor=None,
            use_safetensors=True,
            trust_remote_code=False,
        )
        pipeline.save_pretrained(folder)
    if method in ADAPTERS:
        layers_of_unet = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers_of_unet)
    if method in WORDS:
        rows = text_encoder.get_input_embeddings().weight[-1:].detach().cpu().contiguous()
        save_file({PLACEHOLDER: rows}, folder / "learned_embeds.safetensors")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--images", type=Path, required=True, help="folder of NAME.png with NAME.txt")
    parser.add_argument("--prompt", help="one prompt for all pictures; none: their own")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
