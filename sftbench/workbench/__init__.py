"""The form in JupyterLab."""
