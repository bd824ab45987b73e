"""How well the embedded base listens: its scores on prompts that were never drawn in training.

    python benchmarks/swatch_scores.py [--base FOLDER] [--num_prompts 500]

Prints a table and writes scores.json and a sheet of pictures into --output_dir. Colours: the check of
`pipelines.metrics.world_judge`. Texture, shape and number: a classifier trained here on drawn pictures, whose own
accuracy on other drawn pictures is printed first. Autoencoder: PSNR on drawings of held-out combinations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from data.progress import Progress
from data.randomness import generator
from data.synthetic.world import Scene, all_scenes, draw
from pipelines.components import build_pipeline, load_components
from pipelines.metrics.world_judge import colours_named, content_named, drawn_pictures, train_classifier
from pipelines.sampling import sample
from pipelines.sheets import Row, save_png, sheet

KINDS = ("texture", "shape", "textured shape")


def main() -> None:
    arguments = _arguments()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    components = load_components(arguments.base)
    scores: dict[str, object] = {"base": components.fingerprint, "sampling_steps": arguments.num_inference_steps}
    scores |= {"guidance_scale": arguments.guidance_scale, "psnr_db": _psnr(components.vae)}
    print(f"autoencoder, 500 held-out drawings: PSNR {scores['psnr_db']}")

    bar = Progress(total=arguments.judge_steps, unit="step", desc="judge")
    judge = train_classifier(0, arguments.judge_steps, lambda *_: bar.update())
    bar.close()
    drawn, shown = drawn_pictures(1000, 1, "judge-test")
    scores["judge_accuracy"] = _shares(content_named(judge.read(drawn), shown))
    scores["colour_check_accuracy"] = float(np.mean([colours_named(p, s) for p, s in zip(drawn, shown, strict=True)]))
    print(f"on 1000 drawn pictures: judge {scores['judge_accuracy']}, colour check {scores['colour_check_accuracy']}")

    scenes = held_out_prompts(arguments.num_prompts)
    bar = Progress(total=len(scenes), unit="image", desc="sample")
    pictures = sample(
        build_pipeline(components),
        [scene.caption for scene in scenes],
        list(range(len(scenes))),
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=50,
        progress=bar.update,
    )
    bar.close()
    pixels = np.clip(pictures * 255 + 0.5, 0, 255).astype(np.uint8)
    colours = np.array([colours_named(p, s) for p, s in zip(pixels, scenes, strict=True)])
    content = content_named(judge.read(pixels), scenes)
    kinds = np.array([_kind(scene) for scene in scenes])
    scores["all"] = {"prompts": len(scenes), "colours": float(colours.mean()), **_shares(content)}
    for kind in KINDS:
        chosen = kinds == kind
        scores[kind] = {
            "prompts": int(chosen.sum()),
            "colours": float(colours[chosen].mean()),
            **_shares(content[chosen]),
        }
    for name in ("all", *KINDS):
        print(f"{name:15s} {scores[name]}")
    (arguments.output_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    rows = [Row(kind, list(pictures[kinds == kind][:16])) for kind in KINDS]
    rows += [Row(f"{kind}, 2", list(pictures[kinds == kind][16:32])) for kind in KINDS]
    save_png(sheet(rows, title="prompts never drawn in training"), arguments.output_dir / "held-out.png")
    print(f"{arguments.output_dir / 'held-out.png'}")


def held_out_prompts(count: int) -> list[Scene]:
    """Return held-out combinations, spread evenly over all of them, no combination twice."""
    scenes = [scene for scene in all_scenes() if scene.held_out]
    return [scenes[int(i)] for i in np.linspace(0, len(scenes) - 1, min(count, len(scenes))).round()]


def _kind(scene: Scene) -> str:
    return KINDS[0] if not scene.shape else KINDS[2] if scene.texture else KINDS[1]


def _shares(right: np.ndarray) -> dict[str, float]:
    texture, shape, number = right.mean(axis=0)
    return {
        "texture": float(texture),
        "shape": float(shape),
        "number": float(number),
        "texture, shape and number": float(right.all(axis=1).mean()),
    }


@torch.inference_mode()
def _psnr(vae: torch.nn.Module) -> dict[str, float]:
    """PSNR in dB of 8-bit pictures, 255 the peak: mean, and 5th percentile, over 500 held-out drawings."""
    pictures = np.stack([draw(s, generator(2, "psnr", i)) for i, s in enumerate(held_out_prompts(500))])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    decibel = []
    for batch in pixels.split(50):
        reconstruction = vae.decode(vae.encode(batch).latent_dist.mode()).sample  # type: ignore[operator]
        error = ((reconstruction.clamp(-1, 1) - batch) * 127.5).square().flatten(1).mean(1)
        decibel.append(10 * torch.log10(255**2 / error))
    values = torch.cat(decibel)
    return {"mean": float(values.mean()), "5th percentile": float(values.quantile(0.05))}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="swatch")
    parser.add_argument("--num_prompts", type=int, default=500)
    parser.add_argument("--judge_steps", type=int, default=3000)
    parser.add_argument("--num_inference_steps", type=int, default=30)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/swatch-scores"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
