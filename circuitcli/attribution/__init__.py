"""Which features a behaviour comes from: metrics, baselines, ablation, gradients, edges, selection."""
