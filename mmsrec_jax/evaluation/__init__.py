"""How well systems rank: protocols, ranks, metrics, tables, comparisons, scaling laws."""
