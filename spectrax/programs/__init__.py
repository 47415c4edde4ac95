"""Everything that looks at a jaxpr: what a function closes over, what a program contains, its fast form, its layers."""
