// A module hook for one package: a relative import that names a directory means that directory's index.js.

export async function resolve(specifier, context, next) {
  const directory = specifier.startsWith('.') && context.parentURL?.includes('/@anycable/serverless-js/');
  return next(directory && !specifier.endsWith('.js') ? `${specifier}/index.js` : specifier, context);
}
