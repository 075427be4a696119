"""Hand over: the merged model and its proof."""
