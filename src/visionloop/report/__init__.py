"""One page and one model card about a whole run, made from the files that its stages wrote."""
