"""Helpers shared with xvlm2vec_st."""
