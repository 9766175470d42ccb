"""From finished blocks to a folder that appears whole: targets, cards, manifests, their verification."""
