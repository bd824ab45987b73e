#!/usr/bin/env bash
# Trains the embedded base again: about four hours on two cores. A stopped stage goes on when this is called again.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/swatch
launch=(.venv/bin/accelerate launch --config_file accelerate_configs/cpu.yaml)

stage() { # script, run folder, options
    local script=$1 run=$2 && shift 2
    if grep -qs '"status": "done"' "$run/status.json"; then return; fi
    local resume=()
    if compgen -G "$run/checkpoint-*" >/dev/null; then resume=(--resume_from_checkpoint latest); fi
    "${launch[@]}" "$script" --output_dir "$run" --checkpointing_steps 250 --checkpoints_total_limit 2 "${resume[@]}" "$@"
}

stage finetune/autoencoder.py $runs/autoencoder --config configs/methods/swatch/autoencoder.yaml
stage finetune/text_encoder.py $runs/text_encoder --config configs/methods/swatch/text_encoder.yaml \
    --vae $runs/autoencoder/vae
stage finetune/latent_diffusion.py $runs/together --config configs/methods/swatch/together.yaml \
    --vae $runs/autoencoder/vae --text_encoder $runs/text_encoder
stage finetune/latent_diffusion.py $runs/unet --config configs/methods/swatch/unet.yaml \
    --vae $runs/autoencoder/vae --text_encoder $runs/text_encoder --init_from $runs/together/pipeline
stage finetune/latent_diffusion.py $runs/fine --config configs/methods/swatch/fine.yaml \
    --vae $runs/autoencoder/vae --text_encoder $runs/text_encoder --init_from $runs/unet/pipeline
stage finetune/latent_diffusion.py $runs/textures --config configs/methods/swatch/textures.yaml \
    --vae $runs/autoencoder/vae --text_encoder $runs/text_encoder --init_from $runs/fine/pipeline
.venv/bin/python benchmarks/swatch_scores.py --base $runs/textures/pipeline --output_dir $runs/scores
echo "The model is in $runs/textures/pipeline; copy it over pipelines/swatch to ship it."
