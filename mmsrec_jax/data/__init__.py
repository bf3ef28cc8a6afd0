"""Readers and writers of data sets: atomic files, a store on disk, filters, splits, the toyshop."""
