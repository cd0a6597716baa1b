"""From rows of the residual stream to numbers: products with the unembedding, and statistics of the logits."""
