def render_model_card(manifest):
    return ""
