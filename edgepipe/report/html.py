def render_html(manifests, measurements):
    return ""
